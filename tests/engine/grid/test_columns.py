"""The columns of a campaign: which there are, and what is refused before any work."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import campaigns
import pytest

from engine import recipe
from engine.errors import RecipeError
from engine.grid import campaign
from engine.grid.columns import Column

folder, SETS = campaigns.folder, campaigns.SETS
VARY = "vary: {optimizer.lr: [0.02, 1e-5], train.epochs: [1, 2]}\n"


def planned(folder: Path, tmp_path: Path, text: str, *words: str) -> campaign.Plan:
    file = tmp_path / "varied.yaml"
    file.write_text((folder / "shapes.yaml").read_text() + text)
    return campaign.plan(str(file), [f"runs={tmp_path / 'runs'}", *words], 2)


def test_a_plain_campaign_has_a_column_for_each_set(folder, tmp_path):
    plan = planned(folder, tmp_path, "")
    assert plan.columns == tuple(Column(name, name) for name in SETS)
    assert plan.downstreams == list(SETS)


def test_objectnet_is_fine_tuned_on_only_with_leave():
    """It is evaluated in any case; the campaigns of the benchmark have seven columns without it."""
    words, opened = ("methods=[fine_tune]",), "dataset.objectnet_terms=accepted"
    sets = recipe.load("imagenet_rib").dataset.sets
    for name in ("imagenet_rib", "imagenet_rib_paper"):
        plan = campaign.plan(name, words, 1)
        assert plan.sets == tuple(sets) and "objectnet" in sets
        assert plan.downstreams == [name for name in sets if name != "objectnet"]
        eight = campaign.plan(name, (*words, opened), 1)
        assert eight.downstreams == sets and eight.path != plan.path
    few = (*words, "downstreams=[objectnet,imagenet_a]")
    with pytest.raises(RecipeError, match=r"line: downstreams: objectnet is a test set.*accepted"):
        campaign.plan("imagenet_rib", few, 1)
    assert campaign.plan("imagenet_rib", (*few, opened), 1).downstreams[0] == "objectnet"
    cell = ("imagenet_rib/fine_tune", ["downstream=objectnet"])
    with pytest.raises(RecipeError, match=r"licence forbids .*dataset\.objectnet_terms=accepted"):
        recipe.load(*cell)
    assert recipe.load(cell[0], [*cell[1], opened]).downstream == "objectnet"
    with pytest.raises(RecipeError, match="objectnet_terms='maybe' is not possible"):
        recipe.load("imagenet_rib", ["dataset.objectnet_terms=maybe"])
    settings = ("dataset.kind=folder", "dataset.sets=[objectnet,b]", "downstream=objectnet")
    assert recipe.load("imagenet_rib", settings).downstream == "objectnet", "a folder of that name"


def test_columns_are_the_downstreams_in_every_setting(folder, tmp_path):
    plan = planned(folder, tmp_path, VARY + "downstreams: [few, upstream]\n")
    places = itertools.product(("few", "upstream"), (0.02, 1e-5), (1, 2))
    expected = [(name, {"optimizer.lr": lr, "train.epochs": e}) for name, lr, e in places]
    assert [(column.downstream, column.settings) for column in plan.columns] == expected
    assert plan.columns[2].setting == "optimizer.lr=1e-05,train.epochs=1"
    assert plan.columns[0].name == "few,optimizer.lr=0.02,train.epochs=1"
    assert plan.sets == SETS and plan.downstreams == ["few", "upstream"]
    for column in plan.columns:
        cell = next(plan.cells(column)).recipe
        assert cell.downstream == column.downstream
        assert [*column.settings.values()] == [cell.optimizer.lr, cell.train.epochs]
    words = ("vary={optimizer.lr: [0.02, 1e-5], train.epochs: [1, 2]}", "downstreams=[few]")
    by_words = planned(folder, tmp_path, "", *words)
    assert by_words.columns == plan.columns[:4], "the command line says the same"
    texts = ("", VARY, "downstreams: [few]\n", "downstreams: [upstream]\n")
    assert len({planned(folder, tmp_path, text).path for text in texts}) == len(texts)


def test_a_column_can_be_a_set_that_is_not_evaluated(folder, tmp_path):
    words = ("dataset.sets=[outline,few]", "dataset.train_sets=[tinted]", "downstreams=[tinted]")
    plan = planned(folder, tmp_path, VARY, *words)
    dataset = plan.recipe.dataset
    assert plan.downstreams == ["tinted"] and plan.sets == ("outline", "few")
    assert dataset.places == ["upstream", "outline", "few"]
    assert plan.needed == ["upstream", "outline", "few", "tinted"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vary: {train.epoch: [1]}", r"\(vary\): unknown key 'train.epoch'.* 'train.epochs'"),
        ("vary: {train.epochs: [1, two]}", r"\(vary\): train.epochs='two' must be a whole"),
        ("vary: {train.epochs: []}", r"vary: train.epochs needs a list of values"),
        ("vary: {train.epochs: [[1]]}", r"vary: train.epochs cannot be \[1\]; values are"),
        ("vary: {optimizer.name: [a/b]}", r"cannot be 'a/b'; values are"),
        ("vary: {seeds: [1, 2]}", r"vary: seeds cannot vary"),
        ("seeds: 2\nvary: {seed: [1, 2]}", r"vary: seed and seeds=2 both say the seeds"),
        ("vary: {optimizer.lr: [1, 1.0]}", r"optimizer.lr names 1.0 twice, as 1 and 1.0"),
        ("vary: {model.crop: [1, 2]}", r"vary: model.crop cannot vary"),
        ("vary: {method.lam: [1, 2]}", r"vary: method.lam cannot vary; .*\(`methods=\[ROW\]`\)"),
        ("vary: [train.epochs]", r"vary must hold `KEY: \[1, 2\]` lines"),
        ("downstreams: [fewer]", r"downstreams: 'fewer' is not a set of .*'few'"),
        ("downstreams: [few, few]", r"downstreams names few twice"),
        ("downstreams: []", r"downstreams must list sets"),
    ],
)
def test_what_cannot_be_is_refused_by_the_files_name(folder, tmp_path, text, message):
    with pytest.raises(RecipeError, match=r"varied\.yaml.*" + message):
        planned(folder, tmp_path, text + "\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_thousand_columns_are_planned_in_seconds(tmp_path):
    words = ("vary={optimizer.lr: [" + ", ".join(f"{k}e-5" for k in range(1, 126)) + "]}",)
    started = time.process_time()
    plan = campaign.plan("emoji", [f"runs={tmp_path}", *words], 2)
    assert len(plan.columns) == 1000
    assert time.process_time() - started < 15
