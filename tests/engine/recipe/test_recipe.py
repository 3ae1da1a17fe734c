"""Every ready-made recipe resolves, layers win in order, and users' methods are read by path."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from recipe_files import write

from engine import recipe
from engine.errors import RecipeError
from engine.recipe.schema import Recipe

OPTIONS = {
    "campaign": "",
    "model.name": "???",
    "model.arch": "???",
    "model.image_size": 224,
    "model.weights.source": "timm",
    "model.weights.package": "",
    "model.weights.version": "",
    "model.weights.sha256": "",
    "model.weights.member": "",
    "model.weights.path": "",
    "model.weights.clip": "",
    "model.weights.tag": "",
    "model.weights.templates": "full",
    "model.weights.match": "names",
    "model.weights.photos_right": 0,
    "model.head.fit": False,
    "model.head.l2": 1e-3,
    "model.mean": None,
    "model.std": None,
    "model.interpolation": None,
    "model.crop": None,
    "model.crop_mode": None,
    "model.channels_last": False,
    "model.projection": 0,
    "dataset.name": "???",
    "dataset.kind": "folder",
    "dataset.root": "",
    "dataset.upstream": "upstream",
    "dataset.sets": "???",
    "dataset.train_sets": [],
    "dataset.classes": 0,
    "dataset.renderings": 1,
    "dataset.source_px": 128,
    "dataset.seed": 0,
    "dataset.holdout": 0.25,
    "dataset.train_images": 0,
    "dataset.shots": 0,
    "dataset.portion": 1.0,
    "dataset.pack_format": "raw",
    "dataset.objectnet": "corrected",
    "dataset.objectnet_terms": "test_only",
    "dataset.subsample": "50000",
    "dataset.undecodable": "refuse",
    "dataset.background": "white",
    "dataset.thumbnails": False,
    "method.name": "???",
    "method.title": "???",
    "method.module": "???",
    "method.variant": "canonical",
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.momentum": 0.9,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.0,
    "train.epochs": 10,
    "train.batch_size": 64,
    "train.accumulation": 1,
    "train.warmup_steps": None,
    "train.clip": 0.0,
    "train.freeze_batchnorm": False,
    "train.zero_stage": 1,
    "train.precision": "auto",
    "train.compile": "auto",
    "train.snapshots": 0,
    "train.keep_snapshots": False,
    "train.checkpoint_minutes": 10.0,
    "evaluate.batch_size": 256,
    "evaluate.precision": "auto",
    "evaluate.compile": "auto",
    "evaluate.split": "all",
    "evaluate.budget": 1.0,
    "evaluate.half_width": None,
    "evaluate.cka": 0,
    "downstream": "???",
    "seed": 0,
    "seeds": 1,
    "runs": "runs",
    "source": "auto",
    "device": "auto",
    "trackers": [],
    "threads": 1,
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


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    flattened: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flattened |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flattened


def test_options_are_these() -> None:
    """The public options: whoever changes a name or a default changes it here too, on purpose."""
    assert flat(dataclasses.asdict(Recipe())) == OPTIONS


@pytest.mark.parametrize("name", [n for n in recipe.names() if not n.endswith("pre_fine_tune")])
def test_ready_made_recipe_resolves(name: str) -> None:
    resolved = recipe.load(name)
    method = f"{resolved.campaign}/{resolved.method.name}"
    assert name in (method, f"{method}_{resolved.method.variant}")  # a row once more
    assert resolved.downstream in resolved.dataset.sets
    assert recipe.describe(name)


@pytest.mark.parametrize(
    ("campaign", "method"),
    [(c, m) for c in recipe.names("campaigns") for m in recipe.methods_of(c)],
)
def test_campaign_resolves_every_method(campaign: str, method: str) -> None:
    resolved = recipe.load(campaign, method=method)
    assert method in (resolved.method.name, f"{resolved.method.name}_{resolved.method.variant}")
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
    with pytest.raises(RecipeError, match=r"did you mean 'method\.sharpness'"):
        recipe.load("emoji/fine_tune", [f"method={method}", "method.sharpnes=1"])
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "does not define Recipe"),
        ("class Recipe: pass\n", "does not define Method"),
        (None, "is not a Python file"),
    ],
)
def test_own_method_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    module = tmp_path / "broken.py"
    if text is not None:
        module.write_text(text)
    section = f"name: a\ntitle: A\nmodule: {module}\n"
    path = write(tmp_path / "own.yaml", yaml.safe_dump({"campaign": "emoji"} | held(section)))
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.load(path)
    assert path in str(caught.value) and str(module) in str(caught.value)


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
    [("emoji", 3), ("emoji_vit", 3), ("emoji_dynamics", 8)]
    + [(f"emoji_{name}", 0) for name in ("upstream", "shots", "portions", "cka", "plus")],
)
def test_training_is_followed_where_the_report_shows_it(campaign: str, snapshots: int) -> None:
    assert recipe.load(campaign, method="fine_tune").train.snapshots == snapshots


def test_an_entry_of_a_list_of_methods_can_bring_settings(tmp_path: Path) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("extends: emoji\nmethods: [{ewc: {method: {lam: 7.0}}}, wise_ft]\n")
    assert recipe.methods_of(str(file), []) == ["ewc", "wise_ft"]
    cell = recipe.load(str(file), method="ewc")
    assert (cell.method.lam, cell.method.fisher_images) == (7.0, 400)  # type: ignore[attr-defined]
