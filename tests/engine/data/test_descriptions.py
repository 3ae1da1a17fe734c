"""What lies beside a checkpoint is used: classes, image size, mean, std, crop and prompt."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from grids import CLASSES, SIZE, VIT, Grid, grid
from own_checkpoints import checkpoint, own
from safetensors.torch import save_file

from engine import cli, models
from engine.data import descriptions
from engine.errors import RecipeError
from engine.evaluation import passes, user_models
from engine.grid.build import Builder
from engine.recipe.schema import ModelRecipe
from engine.store.cells import Cell

__all__ = ["grid", "own"]
TIMMS = {
    "mean": [0.4, 0.5, 0.5],
    "std": [0.2, 0.2, 0.3],
    "interpolation": "bilinear",
    "input_size": [3, SIZE, SIZE],
    "crop_pct": 1.0,
}


def rib(own: Grid, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, str]]:
    """The rows of `rib evaluate` with these words."""
    monkeypatch.chdir(own.folder)
    monkeypatch.setattr(user_models.ranks, "stop", lambda: None)  # of the whole test session
    assert cli.main(["evaluate", *words, f"runs={own.runs}", "--force"]) == 0
    with (own.folder / "accuracy.csv").open() as file:
        return list(csv.DictReader(file))


def accuracy(builder: Builder, cell: Cell, name: str) -> float:
    """Of a cell on a whole set, evaluated within its grid."""
    passes.evaluate(builder.run, [{cell.name: 1.0}], [name], "all")
    table = pq.read_table(passes.predicted(builder.run, {cell.name: 1.0}, name, "all"))
    return 100 * (table["top1"].to_numpy() == table["label"].to_numpy()).mean()


def aged(cell: Path, runs: Path) -> Path:
    """A copy of a cell in another folder of runs, as cells were before they told their classes."""
    folder = runs / "store" / "cells" / cell.name
    shutil.copytree(cell, folder)
    values = json.loads((folder / "cell.json").read_text())
    (folder / "cell.json").write_text(
        json.dumps({k: v for k, v in values.items() if k not in ("classes", "model")})
    )
    return folder


def test_a_cell_is_what_it_was_in_its_grid(grid, own, monkeypatch, caplog, capsys, tmp_path):
    """Its transform is not the architecture's own, and a prompt belongs to it."""
    words = ("model.mean=[0.3,0.3,0.3]", "model.std=[0.2,0.3,0.4]", "model.crop=0.8")
    for method in ("fine_tune", "visual_prompt"):
        builder, cell = grid.build(f"method={method}", *words)
        wanted = {name: accuracy(builder, cell, name) for name in ("outline", "few", "tinted")}
        old = aged(cell.artifact.folder, tmp_path / method)
        for model in (cell.artifact.folder, cell.artifact.folder / "weights.safetensors"):
            found = rib(
                own, monkeypatch, "--models", str(model),
                "--sets", "outline", "few", "tinted", "--mask", "present",
            )  # fmt: skip
            assert {row["set"]: float(row["accuracy"]) for row in found} == pytest.approx(wanted)
        warned = "weights.safetensors alone, as timm loads it, is another model"
        assert (warned in caplog.text) == (method == "visual_prompt")
        call = ("--models", str(old), "--sets", "outline", "--mask", "present")
        assert cli.main(["evaluate", *call, f"runs={own.runs}", "--force"]) == 2
        assert "which class each of the 5 outputs" in capsys.readouterr().err
        (tmp_path / method / "packs").symlink_to(grid.runs / "packs")
        (row,) = rib(own, monkeypatch, *call)
        assert float(row["accuracy"]) == pytest.approx(wanted["outline"])


def test_a_prompt_changes_answers_and_must_fit(grid, own, monkeypatch, capsys):
    _, cell = grid.build("method=visual_prompt")
    folder = own.folder / "vp"
    shutil.copytree(cell.artifact.folder, folder)
    call = ("--models", "vp", "--sets", "outline")
    save_file({"prompt": torch.full((3, SIZE, SIZE), 50.0)}, folder / "prompt.safetensors")
    (drowned,) = rib(own, monkeypatch, *call)
    (folder / "prompt.safetensors").unlink()
    (bare,) = rib(own, monkeypatch, *call)
    assert drowned["accuracy"] == "20.000000" != bare["accuracy"]
    save_file({"prompt": torch.zeros(3, 8, 8)}, folder / "prompt.safetensors")
    assert cli.main(["evaluate", *call, f"runs={own.runs}", "--force"]) == 2
    assert "not a prompt for images of 32 px" in capsys.readouterr().err


def test_a_mixed_cell_says_that_it_has_no_weights(grid):
    _, cell = grid.build("method=wise_ft")
    with pytest.raises(ValueError, match=r"wise_ft-outline-.* is a mix .*`rib evaluate --campaign"):
        descriptions.file_of(cell.artifact.folder)
    with pytest.raises(ValueError, match=r"holds no checkpoint \(weights\.safetensors, mod"):
        descriptions.file_of(grid.folder)


def test_timms_file_beside_the_weights_is_used(own):
    file, config = own.folder / "A.safetensors", own.folder / "config.json"

    def found(arch: str | None = None) -> ModelRecipe:
        return user_models.resolve(
            *descriptions.model_of(descriptions.beside([file], arch), arch)
        ).model

    with pytest.raises(ValueError, match=r"A\.safetensors does not tell .*name it by --arch"):
        found()
    config.write_text(json.dumps({"architecture": VIT, "pretrained_cfg": TIMMS}))
    for model in (found(), found(VIT), found(f"{VIT}.r160_in1k")):
        assert (model.arch, model.image_size, model.crop) == (VIT, SIZE, 1.0)
        assert (model.mean, model.std) == (TIMMS["mean"], TIMMS["std"])
        assert (model.interpolation, model.crop_mode) == ("bilinear", "center")
    with pytest.raises(
        ValueError, match=r"config\.json says that the model is test_vit, not test_r"
    ):
        found("test_resnet")
    squashed = {"architecture": VIT, "pretrained_cfg": TIMMS | {"crop_mode": "squash"}}
    config.write_text(json.dumps(squashed))
    assert models.transform(found()).crop_mode == "squash"
    with pytest.raises(RecipeError, match=r"crop_mode='squish' is not.*did you mean 'squash'"):
        user_models.resolve(VIT, ["model.crop_mode=squish"])


def test_a_foreign_config_is_refused_or_passed_over_with_a_word(own, caplog):
    file, config = own.folder / "A.safetensors", own.folder / "config.json"
    config.write_text(json.dumps({"architecture": VIT}))
    with pytest.raises(ValueError, match=r"config\.json was not written by timm .*pretrained_c"):
        descriptions.beside([file], None)
    assert descriptions.beside([file], VIT) == {file: None}
    assert "config.json was not written by timm" in caplog.text


def test_classes_of_timms_file_are_used(own, monkeypatch):
    (own.folder / "hub").mkdir()
    checkpoint(own.folder / "hub" / "model.safetensors", 0)
    told = {"architecture": VIT, "pretrained_cfg": TIMMS}
    by_order = {}
    for order in (CLASSES, CLASSES[::-1]):
        config = told | {"label_names": list(order)}
        (own.folder / "hub" / "config.json").write_text(json.dumps(config))
        (row,) = rib(own, monkeypatch, "--models", "hub", "--sets", "outline")
        (own.folder / "names.txt").write_text("\n".join(order) + "\n")
        call = ("--models", "hub", "--sets", "outline", "--classes")
        assert rib(own, monkeypatch, *call, "names.txt") == [row]
        assert rib(own, monkeypatch, *call, "hub/config.json") == [row]
        by_order[order] = row["accuracy"]
    assert len(set(by_order.values())) == 2


def test_what_models_say_must_agree(own):
    def told(name: str, **values) -> Path:
        file = own.folder / name / "weights.safetensors"
        file.parent.mkdir()
        model = {"arch": VIT, "image_size": SIZE, "crop_pct": 1.0} | values.pop("model", {})
        described = {"entries": [], "classes": list(CLASSES), "model": model} | values
        (file.parent / "cell.json").write_text(json.dumps(described))
        return file

    bare, cell = own.folder / "A.safetensors", told("cell")
    turned, small = told("turned", classes=list(CLASSES[::-1])), told("s", model={"crop_pct": 0.9})
    both = descriptions.beside([cell, bare], None)
    assert descriptions.model_of(both, None) == (
        VIT, [f"model.arch={VIT}", f"model.image_size={SIZE}", "model.crop=1.0"],
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"of .*A.safetensors is; .* add --classes .*cell/cell.json"
    ):
        descriptions.classes_of(both)
    assert descriptions.listed(cell.with_name("cell.json")) == CLASSES
    with pytest.raises(
        ValueError, match=r"cell/cell.json and .*turned/cell.json name other classes"
    ):
        descriptions.classes_of(descriptions.beside([cell, turned], None))
    with pytest.raises(
        ValueError, match=r"cell.json says crop_pct 1.0, .*s/cell.json says 0.9: ev"
    ):
        descriptions.model_of(descriptions.beside([cell, small], None), None)
    assert descriptions.classes_of(descriptions.beside([bare], VIT)) is None


def test_a_list_of_classes_holds_some(own):
    with pytest.raises(ValueError, match=r"A\.safetensors is no list of class names"):
        descriptions.listed(own.folder / "A.safetensors")
    (own.folder / "none.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"none\.txt names no classes; write them in the head's"):
        descriptions.listed(own.folder / "none.txt")
