"""Every ready-made recipe resolves, and layers win in order."""

import dataclasses
import json
from operator import attrgetter
from pathlib import Path

import pytest

from engine.cells.cell_plan import CellPlan, cell_of_plain
from engine.cells.plan_cell import plan_cell
from engine.errors import RecipeError
from engine.methods.linear_probe import first_head
from engine.recipe import campaigns, catalogue
from engine.recipe.campaigns import methods_of, recipe_names
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe, recipe_of_sections, varied_recipe
from engine.recipe.typed import dump_recipe, value_of


def write(path: Path, text: str) -> str:
    """Write a file, and give its path as users type it."""
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("campaign", recipe_names("campaigns"))
@catalogue.each_file_once()
def test_every_row_of_a_campaign_resolves_and_is_read_back_from_a_plan(campaign):
    for method in methods_of(campaign):
        resolved = load_recipe(campaign, method=method)
        assert resolved.method.name == campaigns.read_campaign(campaign).base(method)
        assert {*resolved.trained_sets} <= {*resolved.dataset.evaluated_sets}
        stored = json.loads(json.dumps(dataclasses.asdict(CellPlan(resolved))))
        assert cell_of_plain(stored) == CellPlan(resolved)
        named = f"{campaign}/{method}"
        if named in recipe_names():  # the cell alone is the campaign's cell
            assert load_recipe(named) == resolved


OF_CLIP = ("flyp", "carot", "tracer", "lipsum_ft")


def test_every_part_is_named_as_its_file():
    for group, key in (("models", "model"), ("methods", "method")):
        for name in recipe_names(group):
            is_clip = name in OF_CLIP or name.endswith("_zero_shot")
            campaign = "imagenet_rib_clip" if is_clip else "emoji"
            resolved = load_recipe(f"{campaign}/fine_tune", parsed([f"{key}={name}"]))
            assert getattr(resolved, key).name == name


def test_layers_win_in_order(tmp_path):
    """Model, data and method files; campaign; its method; the recipe; the command line."""
    grid = """\
model: vit_tiny_random
dataset: emoji
downstream: twemoji
train: {epochs: 2, clip: 3.0, batch_size: 8}
methods: {ewc: {train: {epochs: 4, clip: 4.0}, method: {lam: 9.0}}}
"""
    campaign = write(tmp_path / "grid.yaml", grid)
    text = f"campaign: {campaign}\nmethod: ewc\ntrain: {{epochs: 5}}\n"
    recipe_file = write(tmp_path / "own.yaml", text)
    resolved = load_recipe(recipe_file, parsed(["train.batch_size=16"]))
    train = resolved.train
    assert (train.epochs, train.clip, train.batch_size) == (5, 4.0, 16)
    assert resolved.method.lam == 9.0
    assert load_recipe(recipe_file, method="fine_tune").train.clip == 3.0
    assert load_recipe(recipe_file, parsed(["train.epochs=6"])).train.epochs == 6


def test_overrides_of_the_method_stay_with_it():
    words = ["method.lam=7", "train.epochs=1"]
    sibling = load_recipe("emoji/ewc", parsed(words), method="lwf", downstream="openmoji")
    assert (sibling.method.name, sibling.downstream, sibling.train.epochs) == ("lwf", "openmoji", 1)


def test_resolved_recipe_is_a_recipe(tmp_path):
    words = ["optimizer.lr=1e-5", "downstream=openmoji", "model=vit_tiny_random"]
    resolved = load_recipe("emoji/soup", parsed(words))
    saved = write(tmp_path / "resolved.yaml", dump_recipe(resolved))
    assert load_recipe(saved) == resolved
    assert load_recipe(saved, parsed(["seed=3"])) == dataclasses.replace(resolved, seed=3)
    probe = load_recipe(saved, method="linear_probe")  # its settings are the campaign's again
    assert probe.train == load_recipe("emoji", method="linear_probe").train


@pytest.mark.parametrize("name", ["emoji/ewc", "emoji/greedy_soup", "emoji_tuned/lp_ft"])
def test_what_a_cell_needs_is_dumped_with_it(name, tmp_path):
    words = ["optimizer.lr=1e-5", "train.epochs=7", "method.variant=released"]
    cell = plan_cell(name, parsed(words))
    saved = write(tmp_path / "resolved.yaml", cell.dump())
    assert plan_cell(saved) == cell
    write(tmp_path / "resolved.yaml", f"{dump_recipe(cell.recipe)}needs: 3\n")
    if cell.needs:
        with pytest.raises(
            RecipeError, match=r"resolved.yaml: needs must contain sections by method"
        ):
            plan_cell(saved)


def test_campaigns_extend_each_other_but_not_in_a_circle(tmp_path):
    first, second = str(tmp_path / "first.yaml"), tmp_path / "second.yaml"
    text = "extends: emoji\nmodel: {extends: vit_tiny_random, crop: 0.9}\nmethods: [ewc]\n"
    write(second, text)
    write(tmp_path / "first.yaml", f"extends: {second}\nmodel: {{crop: 0.8}}\n")
    assert methods_of(first) == ["ewc"]
    model = load_recipe(first).model
    assert (model.name, model.crop) == ("vit_tiny_random", 0.8)
    write(second, f"extends: {first}\n")
    with pytest.raises(RecipeError, match=r"first\.yaml: a campaign cannot extend itself"):
        methods_of(first)


def test_a_campaign_over_other_sets_begins_with_the_first_of_them():
    assert load_recipe("emoji").downstream == "twemoji"
    for sets, first in (("[openmoji,noto-mono]", "openmoji"), ("[openmoji,twemoji]", "twemoji")):
        assert load_recipe("emoji", parsed([f"dataset.sets={sets}"])).downstream == first


def test_an_entry_of_a_list_of_methods_can_bring_settings(tmp_path):
    text = "extends: emoji\nmethods: [{ewc: {method: {lam: 7.0}}}, wise_ft]\n"
    file = write(tmp_path / "few.yaml", text)
    assert methods_of(file) == ["ewc", "wise_ft"]
    cell = load_recipe(file, method="ewc")
    assert (cell.method.lam, cell.method.fisher_images) == (7.0, 400)


def test_a_recipe_with_other_values_is_what_these_settings_load():
    settings = {
        "optimizer.lr": 1e-05,
        "train.warmup_steps": 0,
        "method.variant": "released",
        "seed": 7,
    }
    base = load_recipe("emoji", method="ewc")
    assert varied_recipe(base, settings) == load_recipe("emoji", parsed([settings]), method="ewc")
    assert value_of(base, "model.head.l2", 1) == 1.0
    with pytest.raises(RecipeError, match=r"^unknown key 'optimizer\.lrr'; did you mean"):
        varied_recipe(base, {"optimizer.lrr": 1})


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("runs=exp #2", "runs", "exp #2"),
        (
            "dataset.per_dataset.noto-v1.background=red",
            "dataset.per_dataset",
            {"noto-v1": {"background": "red"}},
        ),
        ("dataset.root=", "dataset.root", ""),
        ("dataset.background=#808080", "dataset.background", "#808080"),
        ("dataset.sets=twemoji,openmoji", "dataset.sets", ["twemoji", "openmoji"]),
        ("model.mean=null", "model.mean", None),
        ("optimizer={lr: 1, betas: [0, 0]}", "optimizer.betas", (0.0, 0.0)),
        ("model.published.imagenet_a=80", "model.published", {"imagenet_a": 80.0}),
    ],
)
def test_a_word_is_read_as_its_key_holds_it(word, key, value):
    read = attrgetter(key)(load_recipe("emoji/ewc", parsed([word])))
    assert (read, type(read)) == (value, type(value))


def test_a_head_is_fitted_on_the_upstream_set_or_on_one_that_is_never_evaluated():
    """`dataset.upstream=imagenet_train` failed, since it is among the train sets too."""
    assert load_recipe("imagenet_rib").head_set == ""
    words = ["model=dinov2_vits14"]
    assert load_recipe("imagenet_rib", parsed(words)).head_set == "imagenet_val"
    apart = load_recipe("imagenet_rib", parsed([*words, "model.head.fit_on=imagenet_train"]))
    assert apart.head_set == apart.base_sets[-1] == "imagenet_train" != apart.dataset.upstream
    assert first_head(apart).downstream == "imagenet_train"
    assert "imagenet_train" not in apart.dataset.evaluated_sets
    upstream = load_recipe("imagenet_rib", parsed(["dataset.upstream=imagenet_train"]))
    assert upstream.dataset.known.count("imagenet_train") == 1


def test_an_architecture_of_timm_is_a_model_by_its_name():
    name = "mobilenetv3_small_100.lamb_in1k"
    model = load_recipe("emoji/ewc", parsed([f"model={name}"])).model
    assert (model.name, model.arch, model.weights.source) == (name, name, "timm")
    assert model.image_size == 224 and model.head.fit
    assert not load_recipe(
        "emoji/ewc", parsed([f"model={name}", "model.head.fit=false"])
    ).model.head.fit
    whole = load_recipe("imagenet_rib", parsed([f"model={name}"]), method="ewc").model
    assert not whole.head.fit and recipe_of_sections(name, "imagenet_rib").model == whole


def test_a_relative_root_begins_at_its_file_and_on_the_command_line_at_the_working_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    data = "name: d\nsets: [a, b]\nroot: images\n"
    write(tmp_path / "sub" / "data.yaml", data)
    model = "model: vit_tiny_random\nmethod: fine_tune\ndownstream: a\n"
    by_name = write(tmp_path / "cell.yaml", f"{model}dataset: sub/data.yaml\n")
    assert load_recipe(by_name).dataset.root == str(tmp_path / "sub" / "images")
    inside = f"{model}dataset: {{extends: sub/data.yaml, root: other}}\n"
    assert load_recipe(write(tmp_path / "in.yaml", inside)).dataset.root == str(tmp_path / "other")
    word = parsed(["dataset.root=mine"])
    assert load_recipe(by_name, word).dataset.root == "mine"
    absolute = write(tmp_path / "sub" / "data.yaml", data.replace("images", "/images"))
    assert absolute and load_recipe(by_name).dataset.root == "/images"


def test_a_dataset_extends_another_file(tmp_path):
    (tmp_path / "few.yaml").write_text("extends: pacs\nsets: [sketch]\nroot: data\n", "utf-8")
    (tmp_path / "fewer.yaml").write_text("extends: few.yaml\nholdout: 0.5\n", encoding="utf-8")
    dataset = recipe_of_sections("vit_tiny_random", str(tmp_path / "fewer.yaml")).dataset
    assert (dataset.name, dataset.upstream, dataset.sets) == ("pacs", None, ["sketch"])
    assert (dataset.holdout, dataset.root) == (0.5, str(tmp_path / "data"))
    assert list(dataset.per_dataset) == ["sketch"]
    (tmp_path / "few.yaml").write_text("extends: fewer.yaml\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"fewer\.yaml extends itself: name another dataset"):
        recipe_of_sections("vit_tiny_random", str(tmp_path / "fewer.yaml"))
