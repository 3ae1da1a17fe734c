"""What `import engine` offers: the commands' work, from Python."""

import shlex
import sys

import numpy as np
import pytest
import torch

import engine
from engine.campaigns.make_plan import make_plan
from engine.errors import RecipeError
from engine.recipe import yaml_text
from engine.recipe.overrides import parsed
from helpers import grids
from helpers.processes import run


def test_it_is_quick_to_import():
    code = "import sys, engine; print([m for m in ('torch', 'pandas', 'yaml') if m in sys.modules])"
    assert run([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_every_name_is_documented():
    assert all(getattr(engine, name).__doc__ for name in engine.__all__)


def test_settings_are_words_or_mappings(tmp_path):
    """Values as Python has them; an error names the key and the nearest."""
    words = ["seed=3", "optimizer.lr=1e-4", "dataset.sets=[twemoji,openmoji]", f"runs={tmp_path}"]
    values = {"seed": 3, "optimizer": {"lr": 1e-4}, "dataset.sets": ("twemoji", "openmoji")}
    of_words = engine.load_recipe("emoji/ewc", *words)
    assert engine.load_recipe("emoji/ewc", values, {"runs": tmp_path}) == of_words
    with pytest.raises(
        RecipeError, match=r"^the settings: unknown key 'train.epoch'; did you mean"
    ):
        engine.load_recipe("emoji/ewc", {"train.epoch": 3})
    with pytest.raises(RecipeError, match=r"train\.epochs='3' must be a whole number"):
        engine.load_recipe("emoji/ewc", {"train.epochs": "3"})
    vary = {"param_grid": {"optimizer.lr": [1e-4, 1e-3]}, "methods": ["ewc"]}
    plan = make_plan("emoji", parsed([vary, {"runs": tmp_path}]))
    assert plan.command == (
        "rib campaign emoji 'param_grid={optimizer.lr: [0.0001, 0.001]}' 'methods=[ewc]' "
        f"runs={tmp_path}"
    )
    again = make_plan("emoji", parsed(shlex.split(plan.command)[3:]))
    assert again.place == plan.place, "its command makes the same plan"


def test_a_plan_reads_each_file_once(monkeypatch):
    paths = []
    of_file = yaml_text.read_yaml
    monkeypatch.setattr(yaml_text, "read_yaml", lambda path: paths.append(path) or of_file(path))
    make_plan("emoji", ())
    assert paths and len(paths) == len(set(paths))


def test_a_cell_is_trained_and_loaded_into_timm(grid, monkeypatch):
    monkeypatch.setattr("engine.machine.ranks.start", lambda _: grid.device)
    cell = engine.train(grid.recipe, *grid.overrides("seed=11"))
    net = engine.load_cell(cell.artifact.folder)
    state = grids.weights(cell)
    assert not net.training and all(torch.equal(net.state_dict()[k], state[k]) for k in state)
    table = engine.evaluate(
        [cell.artifact.folder], {"new": grid.folder / "tinted"}, f"runs={grid.runs}"
    )
    (row,) = table.to_dict("records")
    shapes = grids.images(grid, "tinted", np.arange(35))
    right = net.double()(shapes).argmax(1) == grids.labels(grid, "tinted", np.arange(35))
    assert row["accuracy_pct"] == pytest.approx(100 * right.double().mean().item())


def test_a_folder_without_weights_is_named_with_what_writes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights.safetensors is missing.*rib export"):
        engine.load_cell(tmp_path)


@pytest.mark.slow
def test_results_and_distances_of_a_finished_campaign(folder, finished):
    words = f"runs={finished}"
    table = engine.results(str(folder / "shapes.yaml"), words)
    matrix = engine.distances(str(folder / "shapes.yaml"), ["outline", "few"], words)
    assert matrix.loc["outline", "few"] == matrix.loc["few", "outline"] > 0
    rows = engine.predictions(str(folder / "shapes.yaml"), ["outline"], words)
    few = "method == 'wise_ft' and alpha == 0.5 and downstream == 'few'"
    assert {*rows["setting"]} == {*table["setting"]} == {""}  # pandas took a dict for a Series
    soft = rows.query(few)
    (of_table,) = table.query(f"{few} and evaluated_on == 'outline'")["accuracy_pct"]
    assert 100 * (soft["top1"] == soft["label"]).mean() == pytest.approx(of_table)
    for ask in (engine.predictions, engine.distances):
        with pytest.raises(ValueError, match="unknown datasets nowhere: choose from "):
            ask(str(folder / "shapes.yaml"), "nowhere", words)
        with pytest.raises(ValueError, match="name at least one"):
            ask(str(folder / "shapes.yaml"), [], words)


def test_nothing_to_evaluate_and_negative_cores_are_refused(tmp_path):
    for checkpoints, sets in (([], {"new": tmp_path}), (tmp_path, {})):
        with pytest.raises(ValueError, match="at least one checkpoint and one dataset"):
            engine.evaluate(checkpoints, sets)
    with pytest.raises(ValueError, match="cores=-1: give at least 1"):
        engine.campaign("emoji", f"runs={tmp_path / 'runs'}", cores=-1)
    assert not (tmp_path / "runs").exists()
