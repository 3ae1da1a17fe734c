"""Every ready-made recipe resolves, layers win in order, and users' methods are read by path."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_files import write

from engine import recipe
from engine.errors import RecipeError
from engine.recipe import campaigns, typed
from engine.recipe.schema import MethodRecipe, Recipe

OPTIONS = {  # default, and what the key may hold
    "campaign": ("", "a text"),
    "model.name": ("???", "a text"),
    "model.arch": ("???", "a text"),
    "model.image_size": (224, "a whole number of at least 1 and at most 4096"),
    "model.weights.source": ("timm", "timm or open_clip or pypi or file or random"),
    "model.weights.package": ("", "a text"),
    "model.weights.version": ("", "a text"),
    "model.weights.sha256": ("", "a text"),
    "model.weights.member": ("", "a text"),
    "model.weights.path": ("", "a text"),
    "model.weights.clip": ("", "a text"),
    "model.weights.tag": ("", "a text"),
    "model.weights.templates": ("full", "full or simple"),
    "model.weights.match": ("names", "names or order"),
    "model.head.fit": (False, "true or false"),
    "model.head.l2": (0.001, "a number above 0"),
    "model.mean": (None, "a list, each a number of at least 0 and at most 1, 3 of them or null"),
    "model.std": (None, "a list, each a number above 0, 3 of them or null"),
    "model.interpolation": (
        None,
        "nearest or bilinear or bicubic or box or hamming or lanczos or null",
    ),
    "model.crop": (None, "a number of at least 0.05 and at most 1 or null"),
    "model.crop_mode": (None, "center or squash or border or null"),
    "model.channels_last": (False, "true or false"),
    "model.projection": (0, "a whole number of at least 0 and at most 100000"),
    "model.published": ({}, "`key: value` lines"),
    "dataset.name": ("???", "a text"),
    "dataset.kind": ("folder", "folder or emoji or imagenet"),
    "dataset.root": ("", "a text"),
    "dataset.upstream": ("upstream", "a text"),
    "dataset.sets": ("???", "a list, each a text"),
    "dataset.train_sets": ([], "a list, each a text"),
    "dataset.classes": (0, "a whole number of at least 0 and at most 100000"),
    "dataset.renderings": (1, "a whole number of at least 1 and at most 1000"),
    "dataset.source_px": (128, "a whole number of at least 1 and at most 4096"),
    "dataset.seed": (0, "a whole number of at least 0 and at most 9223372036854775807"),
    "dataset.holdout": (0.25, "a number of at least 0 and below 1"),
    "dataset.train_images": (0, "a whole number of at least 0"),
    "dataset.shots": (0, "a whole number of at least 0"),
    "dataset.portion": (1.0, "a number above 0 and at most 1"),
    "dataset.pack_format": ("raw", "raw or jpeg"),
    "dataset.objectnet": ("corrected", "corrected or paper"),
    "dataset.objectnet_terms": ("test_only", "test_only or accepted"),
    "dataset.subsample": ("50000", "a text"),
    "dataset.undecodable": ("refuse", "refuse or skip"),
    "dataset.background": ("white", "a text"),
    "dataset.thumbnails": (False, "true or false"),
    "method.name": ("???", "a text"),
    "method.title": ("???", "a text"),
    "method.module": ("???", "a text"),
    "method.variant": ("canonical", "canonical or paper"),
    "optimizer.name": ("adamw", "adamw or sgd or apex_adamw or apex_sgd"),
    "optimizer.lr": (0.001, "a number above 0"),
    "optimizer.momentum": (0.9, "a number of at least 0 and below 1"),
    "optimizer.betas": ((0.9, 0.999), "a list, each a number of at least 0 and below 1, 2 of them"),
    "optimizer.eps": (1e-08, "a number of at least 0"),
    "optimizer.weight_decay": (0.0, "a number of at least 0"),
    "train.epochs": (10, "a whole number of at least 1 and at most 100000"),
    "train.batch_size": (64, "a whole number of at least 1 and at most 65536"),
    "train.accumulation": (1, "a whole number of at least 1 and at most 65536"),
    "train.warmup_steps": (None, "a whole number of at least 0 or null"),
    "train.clip": (0.0, "a number of at least 0"),
    "train.freeze_batchnorm": (False, "true or false"),
    "train.precision": ("auto", "auto or fp32 or bf16"),
    "train.compile": ("auto", "auto or always or never"),
    "train.snapshots": (0, "a whole number of at least 0 and at most 1000"),
    "train.keep_snapshots": (False, "true or false"),
    "train.checkpoint_minutes": (10.0, "a number of at least 0"),
    "evaluate.batch_size": (256, "a whole number of at least 1 and at most 65536"),
    "evaluate.precision": ("auto", "auto or fp32 or bf16"),
    "evaluate.compile": ("auto", "auto or always or never"),
    "evaluate.split": ("all", "all or holdout"),
    "evaluate.calibration": (False, "true or false"),
    "evaluate.cka": (0, "a whole number of at least 0"),
    "downstream": ("???", "a text"),
    "seed": (0, "a whole number of at least 0 and at most 9223372036854775807"),
    "seeds": (1, "a whole number of at least 1 and at most 1000"),
    "runs": ("runs", "a text, not an empty one"),
    "source": ("auto", "auto or resident or stream"),
    "device": ("auto", "auto or cpu or cuda"),
    "trackers": ([], "a list, each a text"),
    "threads": (1, "a whole number of at least 1 and at most 1024"),
}
METHOD = """
from __future__ import annotations
from dataclasses import dataclass
from engine.methods.base import Trained
from engine.recipe.schema import MethodRecipe

@dataclass(frozen=True)
class Recipe(MethodRecipe):
    sharpness: float = 0.5

Method = Trained
"""


def options(kind: type, made: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, str]]]:
    for name, inner in typed.hints(kind, MethodRecipe).items():
        if dataclasses.is_dataclass(inner):
            yield from options(inner, getattr(made, name), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", (getattr(made, name), typed.words(inner))


def test_options_are_these() -> None:
    """The public options: whoever changes a name, a default or a range changes it here too, on
    purpose."""
    assert dict(options(Recipe, Recipe())) == OPTIONS


@pytest.mark.parametrize("name", [n for n in recipe.names() if not n.endswith("pre_fine_tune")])
def test_ready_made_recipe_resolves(name: str) -> None:
    resolved = recipe.load(name)
    row = name.rpartition("/")[2]
    assert resolved.method.name in (row, campaigns.read(resolved.campaign).base(row))
    assert resolved.downstream in resolved.dataset.sets
    assert campaigns.read(resolved.campaign).title(row)


@pytest.mark.parametrize(
    ("campaign", "method"),
    [(c, m) for c in recipe.names("campaigns") for m in recipe.methods_of(c)],
)
def test_campaign_resolves_every_method(campaign: str, method: str) -> None:
    resolved = recipe.load(campaign, method=method)
    assert resolved.method.name == campaigns.read(campaign).base(method)
    named = f"{campaign}/{method}"
    if named in recipe.names():  # the cell alone is the campaign's cell
        assert recipe.load(named) == resolved


@pytest.mark.parametrize("group", ["models", "methods"])
def test_every_part_is_named_as_its_file(group: str) -> None:
    key = group.removesuffix("s")
    for name in recipe.names(group):
        campaign = "imagenet_rib_clip" if name == "flyp" else "emoji"  # FLYP has CLIP models only
        resolved = recipe.load(f"{campaign}/fine_tune", [f"{key}={name}"])
        assert getattr(resolved, key).name == name


def test_folder_data_set_needs_only_its_sets(tmp_path: Path) -> None:
    words = ["dataset=folder", f"dataset.root={tmp_path}", "dataset.sets=[a,b]", "downstream=b"]
    resolved = recipe.load("emoji/fine_tune", words)
    assert resolved.dataset.sets == ["a", "b"] and resolved.dataset.kind == "folder"


def test_layers_win_in_order(tmp_path: Path) -> None:
    """Model, data and method files; campaign; its method; the recipe; the command line."""
    campaign = write(
        tmp_path / "grid.yaml",
        "model: vit_tiny_random\ndataset: emoji\ndownstream: twemoji\n"
        "train: {epochs: 2, clip: 3.0, batch_size: 8}\n"
        "methods:\n  ewc: {train: {epochs: 4, clip: 4.0}, method: {lam: 9.0}}\n",
    )
    recipe_file = write(
        tmp_path / "own.yaml", f"campaign: {campaign}\nmethod: ewc\ntrain: {{epochs: 5}}\n"
    )
    resolved = recipe.load(recipe_file, ["train.batch_size=16"])
    train = resolved.train
    assert (train.epochs, train.clip, train.batch_size) == (5, 4.0, 16)
    assert resolved.method.lam == 9.0  # type: ignore[attr-defined]
    assert recipe.load(recipe_file, method="fine_tune").train.clip == 3.0
    assert recipe.load(recipe_file, ["train.epochs=6"]).train.epochs == 6


def test_overrides_of_the_method_stay_with_it() -> None:
    words = ["method.lam=7", "train.epochs=1"]
    assert recipe.load("emoji/ewc", words).method.lam == 7.0  # type: ignore[attr-defined]
    sibling = recipe.load("emoji/ewc", words, method="lwf", downstream="openmoji")
    assert (sibling.method.name, sibling.downstream, sibling.train.epochs) == ("lwf", "openmoji", 1)


@pytest.mark.parametrize("name", ["emoji/ewc", "emoji/wise_ft", "emoji/soup"])
def test_resolved_recipe_is_a_recipe(name: str, tmp_path: Path) -> None:
    words = ["optimizer.lr=1e-5", "downstream=openmoji", "model=vit_tiny_random"]
    resolved = recipe.load(name, words)
    saved = write(tmp_path / "resolved.yaml", recipe.dump(resolved))
    assert recipe.load(saved) == resolved
    assert recipe.load(saved, ["seed=3"]) == dataclasses.replace(resolved, seed=3)
    probe = recipe.load(saved, method="linear_probe")  # its settings are the campaign's again
    assert probe.train == recipe.load("emoji", method="linear_probe").train


def test_dump_is_plain_yaml() -> None:
    text = recipe.dump(recipe.load("emoji/fine_tune"))
    assert "!!" not in text and yaml.safe_load(text)["dataset"]["name"] == "emoji"


def test_own_method_by_path(tmp_path: Path) -> None:
    module = write(tmp_path / "sharp.py", METHOD)
    section = f"name: sharp\ntitle: Sharp\nmodule: {module}\nsharpness: 0.25\n"
    method = write(tmp_path / "sharp.yaml", section)
    for words in ([f"method={method}"], [f"method={method}", "method.sharpness=0.75"]):
        loaded = recipe.load("emoji/fine_tune", words).method
        assert (loaded.name, type(loaded).__name__) == ("sharp", "Recipe")
        assert loaded.sharpness == (0.75 if len(words) > 1 else 0.25)  # type: ignore[attr-defined]
    inline = write(tmp_path / "own.yaml", yaml.safe_dump({"campaign": "emoji"} | held(section)))
    assert recipe.load(inline).method.title == "Sharp"
    assert recipe.load(inline, method="lwf") == recipe.load("emoji", method="lwf")


def test_own_method_lies_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line it is relative to the working directory; a dump has the whole path."""
    place = tmp_path / "mine"
    place.mkdir()
    module = write(place / "sharp.py", METHOD)
    section = "name: sharp\ntitle: Sharp\nmodule: sharp.py\n"
    method = write(place / "sharp.yaml", section)
    inline = write(place / "own.yaml", yaml.safe_dump({"campaign": "emoji"} | held(section)))
    for name, words in (("emoji/fine_tune", [f"method={method}"]), (inline, [])):
        assert recipe.load(name, words).method.module == module
    with pytest.raises(RecipeError, match=r"sharp\.py' is not a Python file; a relative path"):
        recipe.load("emoji/fine_tune", ["method.module=sharp.py"])
    monkeypatch.chdir(place)
    resolved = recipe.load("emoji/fine_tune", ["method.module=sharp.py", "method.sharpness=1"])
    assert resolved.method.module == module
    dumped = write(tmp_path / "dumped.yaml", recipe.dump(resolved))
    assert recipe.dump(recipe.load(dumped)) == recipe.dump(resolved)


def held(section: str) -> dict:
    return {"method": yaml.safe_load(section)}


def test_a_campaign_that_extends_itself(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first.yaml"), str(tmp_path / "second.yaml")
    write(tmp_path / "first.yaml", f"extends: {second}\n")
    write(tmp_path / "second.yaml", f"extends: {first}\nmethods: {{ewc: {{}}}}\n")
    with pytest.raises(RecipeError, match=r"first\.yaml: a campaign cannot extend itself"):
        recipe.methods_of(first)
    write(tmp_path / "second.yaml", "extends: emoji\nmethods: [ewc]\n")
    assert recipe.methods_of(first) == ["ewc"]


def test_a_campaign_over_other_sets_begins_with_the_first_of_them() -> None:
    assert recipe.load("emoji").downstream == "twemoji"
    for sets, first in (("[openmoji,noto-mono]", "openmoji"), ("[openmoji,twemoji]", "twemoji")):
        assert recipe.load("emoji", [f"dataset.sets={sets}"]).downstream == first


@pytest.mark.parametrize(
    ("campaign", "snapshots"),
    [("emoji_dynamics", 8), ("imagenet_rib_dynamics", 12)]
    + [(name, 0) for name in ("emoji", "emoji_plus", "imagenet_rib", "imagenet_rib_upstream")],
)
def test_training_is_followed_where_the_report_shows_it(campaign: str, snapshots: int) -> None:
    assert recipe.load(campaign, method="fine_tune").train.snapshots == snapshots


def test_an_entry_of_a_list_of_methods_can_bring_settings(tmp_path: Path) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("extends: emoji\nmethods: [{ewc: {method: {lam: 7.0}}}, wise_ft]\n")
    assert recipe.methods_of(str(file), []) == ["ewc", "wise_ft"]
    cell = recipe.load(str(file), method="ewc")
    assert (cell.method.lam, cell.method.fisher_images) == (7.0, 400)  # type: ignore[attr-defined]


VARIED = [
    ("optimizer.lr=0.001",),
    ("optimizer.lr=1e-05", "train.epochs=2"),
    ("optimizer.name=sgd", "train.warmup_steps=0", "train.freeze_batchnorm=false"),
    ("method.variant=paper",),
    ("seed=7", "train.epochs=2"),
    (),
]


@pytest.mark.parametrize("words", VARIED, ids=map(str, VARIED))
def test_a_recipe_with_other_values_is_what_these_words_load(words: tuple[str, ...]) -> None:
    base = recipe.load("emoji", method="ewc")
    assert recipe.varied(base, words) == recipe.load("emoji", words, method="ewc")
    assert recipe.value_of(base, "model.head.l2=1") == 1.0
    with pytest.raises(
        RecipeError, match=r"^unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'"
    ):
        recipe.varied(base, ["optimizer.lrr=1"])


@pytest.mark.parametrize("name", recipe.names("campaigns"))
def test_a_stored_recipe_is_read_back_as_it_was(name: str) -> None:
    for method in recipe.methods_of(name):
        resolved = recipe.load(name, method=method)
        stored = json.loads(json.dumps(dataclasses.asdict(resolved)))
        assert recipe.of_values(stored) == resolved


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("runs=exp #2", "runs", "exp #2"),
        ("runs=a: b", "runs", "a: b"),
        ("dataset.subsample=1e3", "dataset.subsample", "1e3"),
        ("model.weights.version=1.10", "model.weights.version", "1.10"),
        ("dataset.root=", "dataset.root", ""),
        ("dataset.background=#808080", "dataset.background", "#808080"),
        ("trackers=tensorboard", "trackers", ["tensorboard"]),
        ("dataset.sets=twemoji,openmoji", "dataset.sets", ["twemoji", "openmoji"]),
        ("model.mean=null", "model.mean", None),
        ("optimizer={lr: 1, betas: [0, 0]}", "optimizer.betas", (0.0, 0.0)),
        ("model.published.imagenet_a=80", "model.published", {"imagenet_a": 80.0}),
    ],
)
def test_a_word_is_read_as_its_key_holds_it(word: str, key: str, value: object) -> None:
    read = attrgetter(key)(recipe.load("emoji/ewc", [word]))
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "mobilenetv3_small_100.lamb_in1k"])
def test_an_architecture_of_timm_is_a_model_by_its_name(name: str) -> None:
    model = recipe.load("emoji/ewc", [f"model={name}"]).model
    assert (model.name, model.arch, model.weights.source) == (name, name, "timm")
    assert model.image_size == 224 and model.head.fit
    assert not recipe.load("emoji/ewc", [f"model={name}", "model.head.fit=false"]).model.head.fit
    whole = recipe.load("imagenet_rib", [f"model={name}"], method="ewc").model
    assert not whole.head.fit and recipe.of_sections(name, "imagenet_rib").model == whole
    for unknown in ("mobilenetv3_smal_100", "test_vit_none", "vit_tiny_patch16_512"):
        with pytest.raises(RecipeError, match=f"there is no model '{unknown}'"):
            recipe.load("emoji/ewc", [f"model={unknown}"])
