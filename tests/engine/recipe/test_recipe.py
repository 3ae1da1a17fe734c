"""Recipes: every ready-made one resolves, and every mistake is named with its file and remedy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

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
    "model.head.kind": "probe",
    "model.head.l2": 1e-3,
    "model.head.scale": 100.0,
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
    found: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def test_options_are_these() -> None:
    """The public options, frozen: a change of a name or a default is made here too, on purpose."""
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
    own = write(tmp_path / "own.yaml", f"campaign: {campaign}\nmethod: ewc\ntrain: {{epochs: 5}}\n")
    resolved = recipe.load(own, ["train.batch_size=16"])
    train = resolved.train
    assert (train.epochs, train.clip, train.batch_size) == (5, 4.0, 16)
    assert resolved.method.lam == 9.0  # type: ignore[attr-defined]
    assert recipe.load(own, method="fine_tune").train.clip == 3.0
    assert recipe.load(own, ["train.epochs=6"]).train.epochs == 6


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
        found = recipe.load("emoji/fine_tune", words).method
        assert (found.name, type(found).__name__) == ("sharp", "Recipe")
        assert found.sharpness == (0.75 if len(words) > 1 else 0.25)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"did you mean 'method\.sharpness'"):
        recipe.load("emoji/fine_tune", [f"method={method}", "method.sharpnes=1"])
    inline = write(tmp_path / "own.yaml", yaml.safe_dump({"campaign": "emoji"} | held(section)))
    assert recipe.load(inline).method.title == "Sharp"
    assert recipe.load(inline, method="lwf") == recipe.load("emoji", method="lwf")


def test_own_method_lies_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line it is looked for in the working directory; what is dumped says where."""
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


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("emoji/ewx", [], "no recipe 'emoji/ewx'; did you mean 'emoji/ewc'?"),
        ("nowhere.yaml", [], "no recipe file nowhere.yaml"),
        ("", [], "no recipe ''; valid: emoji/ewc"),
        ("emoji/ewc", ["train.epoch=1"], "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("emoji/ewc", ["trian.epochs=1"], "unknown key 'trian'; did you mean 'train'?"),
        ("emoji/ewc", ["variant=paper"], "'variant'; did you mean 'method.variant'?"),
        ("emoji/ewc", ["train.lr=1"], "did you mean 'optimizer.lr'?"),
        ("emoji/ewc", ["batchsize=1"], "did you mean 'train.batch_size' or 'evaluate.batch_size'"),
        ("emoji/ewc", ["temperature=1"], "unknown key 'temperature'; valid: campaign, dataset,"),
        ("emoji/ewc", ["method.lamb=1"], "unknown key 'method.lamb'; did you mean 'method.lam'?"),
        ("emoji/lwf", ["method.lam=1"], "unknown key 'method.lam'"),
        ("emoji/ewc", ["model=efficientnet"], "did you mean 'efficientnet_lite0'?"),
        ("emoji/ewc", ["dataset=emojy"], "no dataset 'emojy'; did you mean 'emoji'?"),
        ("emoji/ewc", ["method=ewcc"], "no method 'ewcc'; did you mean 'ewc'?"),
        ("emoji/ewc", ["campaign=emojis"], "no campaign 'emojis'; did you mean 'emoji'?"),
        ("emoji/ewc", ["downstream=twemojy"], "not a set of emoji; did you mean 'twemoji'?"),
        ("emoji/ewc", ["method.module=ewq"], "no method module 'ewq'; did you mean 'ewc'?"),
        ("emoji/ewc", ["device=gpu"], "device='gpu' is not possible; did you mean 'cpu'?"),
        ("emoji/ewc", ["dataset.background=whitish"], "background='whitish' is not possible"),
        ("emoji/ewc", ["dataset.background=rgb(0,0,256)"], "give a colour's name, or rgb(R,G,B)"),
        ("emoji/ewc", ["dataset.background=#808080"], "dataset.background"),
        ("emoji/ewc", ["train.zero_stage=3"], "train.zero_stage=3 is not possible; valid: 0, 1, 2"),
        ("emoji/ewc", ["train.epochs=many"], "train.epochs: Value 'many' of type 'str' could not"),
        ("emoji/ewc", ["train.epochs=1.5"], "train.epochs: Value '1.5' of type 'float' could not"),
        ("emoji/ewc", ["train.clip=yes"], "train.clip: Value 'True' of type 'bool' could not"),
        ("emoji/ewc", ["train.epochs=0"], "train.epochs=0 must be at least 1"),
        ("emoji/ewc", ["train.epochs="], "train.epochs: Incompatible value 'None'"),
        ("emoji/ewc", ["runs="], "runs: Incompatible value 'None'"),
        ("emoji/ewc", ["train=3"], "train must hold `key: value` lines, not 3"),
        ("emoji/ewc", ["train.epochs=[1"], "override 'train.epochs=[1' is not valid YAML"),
        ("emoji/ewc", ["train.epochs"], "not an override; write key=value"),
        ("emoji/ewc", ["=1"], "not an override"),
        ("emoji/ewc", ["seed=${nope}"], "'seed=${nope}': `${...}` is not resolved"),
        ("emoji/ewc", ["dataset.holdout=1"], "dataset.holdout=1.0 must be at least 0 and below 1"),
        ("emoji/ewc", ["dataset.sets=[a,b]"], "'a' is no emoji style; valid: "),
        ("emoji", ["dataset.sets=[twemoji,twemojo]"], "'twemojo' is no emoji style; did you mean"),
        ("emoji/ewc", ["dataset.sets=[openmoji]"], "downstream='twemoji' is not a set of emoji"),
        ("emoji/ewc", ["dataset.sets=[twemoji,twemoji]"], "dataset.sets names twemoji twice"),
        ("emoji/ewc", ["dataset.sets={a: b}"], "the command line: dataset.sets: a list stands for"),
        ("emoji/ewc", ["dataset.sets=[[twemoji]]"], "dataset.sets: ['twemoji'] cannot be an elem"),
        ("emoji/soup", ["method.members=[[ewc]]"], "method.members: ['ewc'] cannot be an element"),
        ("emoji/ewc", ["dataset.sets=[twemoji,'a{b}']"], "'a{b}' cannot be part of a path"),
        ("emoji/ewc", [f"model.name={'x' * 101}"], "use at most 100 bytes, without slashes"),
        ("emoji/ewc", [f"{'a.' * 20}a=1"], "is not an override"),
        ("emoji/ewc", ["model.interpolation=banana"], "valid: None, bicubic, bilinear, box, ham"),
        ("emoji/ewc", ["model.image_size=999999"], "must be at least 1 and at most 4096"),
        ("emoji/ewc", ["train.batch_size=999999"], "must be at least 1 and at most 65536"),
        ("emoji/ewc", ["dataset.classes=999999"], "must be at least 0 and at most 100000"),
        ("emoji/ewc", ["dataset.train_sets=[twemoji]"], "dataset.train_sets names twemoji twice"),
        ("emoji/ewc", ["dataset.train_sets=[a/b]"], "dataset.train_sets: 'a/b' cannot be part of"),
        ("emoji/ewc", ["dataset.train_sets=[oil]"], "dataset.train_sets: 'oil' is no emoji style"),
        ("emoji/ewc", ["dataset.sets=[twemoji,sub/b]"], "'sub/b' cannot be part of a path"),
        ("emoji/ewc", ["model.name=.x"], "model.name: '.x' cannot be part of a path"),
        ("emoji/ewc", ["model.name=x/y"], "model.name: 'x/y' cannot be part of a path"),
        ("emoji/ewc", ["method.name=x/y"], "method.name: 'x/y' cannot be part of a path"),
        ("emoji/ewc", ["method.fisher_scale=meen"], "did you mean 'mean'?"),
        ("emoji/ewc", ["method.fisher_labels=guess"], "method.fisher_labels='guess' is not"),
        ("emoji/soup", ["method.select=gredy"], "did you mean 'greedy'?"),
        ("emoji/soup", ["method.members=[]"], "method.members is empty"),
        ("emoji/greedy_soup", ["dataset.holdout=0"], "hold-out; set dataset.holdout above 0"),
        ("emoji/visual_prompt", ["model.image_size=2"], "0 px does not fit an image of 2 px"),
        ("emoji/ewc", ["model.mean=[0.5,0.5]"], "model.mean=[0.5, 0.5] must be three numbers"),
        ("emoji/ewc", ["model.mean=[0,0,2]"], "model.mean=2.0 must be at least 0 and at most 1"),
        ("emoji/ewc", ["model.std=[1,1,0]"], "model.std=0.0 must be above 0"),
        ("emoji/ewc", ["model.crop=1.5"], "model.crop=1.5 must be at least 0.05 and at most 1"),
        ("emoji/ewc", ["seed=9223372036854775808"], "at most 9223372036854775807"),
        ("emoji/ewc", ["dataset.seed=9223372036854775808"], "at most 9223372036854775807"),
        ("emoji/wise_ft", ["method.alphas=[0.5,1.5]"], "method.alphas=1.5 must be at least 0"),
    ],
)
def test_mistake_on_the_command_line(name: str, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        recipe.load(name, words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        *("seed=-1", "seeds=0", "train.batch_size=0", "train.accumulation=0", "train.clip=-1"),
        "train.snapshots=-1",
        "train.checkpoint_minutes=-1",
        *("train.warmup_steps=-3", "evaluate.batch_size=0", "optimizer.lr=0", "optimizer.lr=-1"),
        *("optimizer.lr=.nan", "optimizer.lr=.inf", "optimizer.momentum=1", "optimizer.eps=-1"),
        *("optimizer.weight_decay=-1", "optimizer.betas=[0.9,1]", "model.image_size=0"),
        *("model.crop=0", "model.projection=-1", "model.head.l2=0", "model.head.l2=-1e-3"),
        *("dataset.renderings=0", "dataset.source_px=0", "dataset.holdout=-0.1"),
        *("method.lam=-1", "method.lam=.nan", "method.fisher_images=-5"),
    ],
)
def test_a_number_out_of_range_names_its_key(word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"^{re.escape(key)}=\S+ must be (at least|above)"):
        recipe.load("emoji/ewc", [word])


@pytest.mark.parametrize("word", ["method.l2=0", "method.l2=-1", "method.l2=.inf"])
def test_a_probe_refuses_what_has_no_single_optimum(word: str) -> None:
    with pytest.raises(RecipeError, match=r"method.l2=\S+ must be above 0"):
        recipe.load("emoji/linear_probe", [word])
    with pytest.raises(RecipeError, match=r"method.anchor='bace' .* did you mean 'base'"):
        recipe.load("emoji/linear_probe", ["method.anchor=bace"])


@pytest.mark.parametrize("key", ["epochs", "batch_size", "lr", "weight_decay"])
def test_a_key_of_the_head_that_is_gone_names_the_new_one(key: str, tmp_path: Path) -> None:
    model = write(tmp_path / "mine.yaml", f"name: a\narch: b\nhead: {{fit: true, {key}: 1}}\n")
    for words, source in ([f"model.head.{key}=1"], "the command line"), ([f"model={model}"], model):
        said = rf"{re.escape(source)}: unknown key 'model.head.{key}'; .* set model.head.l2"
        with pytest.raises(RecipeError, match=said):
            recipe.load("emoji/ewc", words)


@pytest.mark.parametrize("word", ["method.temperature=0", "method.weight=-1", "method.weight=.inf"])
def test_lwf_refuses_what_is_no_distillation(word: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(word.partition("=")[0])):
        recipe.load("emoji/lwf", [word])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "is not valid YAML"),
        ("\tcampaign: emoji", "is not valid YAML"),
        ("", "must hold `key: value` lines"),
        ("- emoji", "must hold `key: value` lines"),
        (
            "campaign: emoji\nmethod: ewc\ntrain: {epoch: 3}",
            "'train.epoch'; did you mean 'train.epochs'",
        ),
        ("campaign: emoji\nmethod: ewc\ntrain: 3", "train must hold `key: value` lines"),
        ("campaign: emoji\nmethod: ewc\nseed: two", "seed: Value 'two' of type 'str'"),
        ("model: vit_tiny_random\nmethod: ewc", "names no dataset; add `dataset=NAME`"),
        ("dataset: emoji\nmethod: ewc", "names no model; add `model=NAME`"),
        ("model: vit_tiny_random\ndataset: emoji", "names no method; add `method=NAME`"),
        ("model: vit_tiny_random\ndataset: emoji\nmethod: ewc", "downstream has no value"),
        ("campaign: emoji\nmethod: ewc\ndataset: folder", "dataset.sets has no value"),
        ("campaign: emoji\nmethod: {name: a, title: A}", "method.module has no value"),
        ("methods: [ewc]\nmodel: vit_tiny_random\ndataset: emoji", "methods must hold"),
        ("methods: {ewc: 3}\nmodel: vit_tiny_random\ndataset: emoji", "(methods.ewc) must hold"),
        (
            "methods: {ewc: {train: {epoch: 1}}}\nmodel: vit_tiny_random\ndataset: emoji",
            "(methods.ewc): unknown key 'train.epoch'",
        ),
    ],
)
def test_mistake_in_a_file_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "own.yaml", text)
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        recipe.load(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_campaign_that_extends_itself(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first.yaml"), str(tmp_path / "second.yaml")
    write(tmp_path / "first.yaml", f"extends: {second}\n")
    write(tmp_path / "second.yaml", f"extends: {first}\nmethods: {{ewc: {{}}}}\n")
    with pytest.raises(RecipeError, match=r"first\.yaml: a campaign cannot extend itself"):
        recipe.methods_of(first)
    write(tmp_path / "second.yaml", "extends: emoji\nmethods: [ewc]\n")
    assert recipe.methods_of(first) == ["ewc"]


def test_mistake_in_a_named_part_names_that_file(tmp_path: Path) -> None:
    model = write(tmp_path / "model.yaml", "name: m\narch: test_vit\nimage_sise: 32\n")
    with pytest.raises(
        RecipeError, match=r"'model\.image_sise'; did you mean 'model\.image_size'"
    ) as caught:
        recipe.load("emoji/ewc", [f"model={model}"])
    assert model in str(caught.value)


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(RecipeError, match="not valid YAML"):
        recipe.load(str(path))


def test_methods_of_what_is_no_campaign(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yaml", "campaign: emoji\nmethod: ewc\n")
    with pytest.raises(RecipeError, match="is no campaign; it needs `methods:`"):
        recipe.methods_of(path)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_campaign_over_other_sets_begins_with_the_first_of_them() -> None:
    assert recipe.load("emoji").downstream == "twemoji"
    for sets, first in (("[openmoji,noto-mono]", "openmoji"), ("[openmoji,twemoji]", "twemoji")):
        assert recipe.load("emoji", [f"dataset.sets={sets}"]).downstream == first


def test_a_number_of_points_for_precision_is_told_its_key() -> None:
    with pytest.raises(RecipeError, match=r"evaluate.precision='0.1' .*evaluate.half_width"):
        recipe.load("emoji", ["evaluate.precision=0.1"])


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
