"""What lies beside a checkpoint is used: classes, image size, mean, std, crop and prompt.

Names in a stranger's folder open neither the network nor another folder.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from engine import cli
from engine.evaluation import passes
from engine.evaluation.accuracies import EvaluatedModel, on_set
from engine.exchange import user_models
from engine.model_files.descriptions import (
    Description,
    checkpoint_in,
    describe_checkpoint,
    read_classes,
    read_description,
)
from engine.recipe import image_transform
from engine.recipe.overrides import parsed
from engine.recipe.schema import ModelRecipe
from helpers import campaigns
from helpers.grids import CLASSES, SIZE, VIT, Grid
from helpers.user_checkpoints import checkpoint

TIMMS = {
    "mean": [0.4, 0.5, 0.5],
    "std": [0.2, 0.2, 0.3],
    "interpolation": "bilinear",
    "input_size": [3, SIZE, SIZE],
    "crop_pct": 1.0,
}


def beside(files: Sequence[Path], arch: str | None) -> dict[Path, Description | None]:
    return {file: describe_checkpoint(file, arch) for file in files}


def rib(user_grid: Grid, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, str]]:
    """The rows of `rib evaluate` with these words."""
    monkeypatch.chdir(user_grid.folder)
    assert cli.main(["evaluate", *words, f"runs={user_grid.runs}", "--force"]) == 0
    return campaigns.rows(user_grid.folder / "accuracy.csv")


def test_a_cell_is_what_it_was_in_its_grid(grid, user_grid, monkeypatch, capsys):
    """The cell has a transform that its architecture does not have, and a prompt."""
    words = ("model.mean=[0.3,0.3,0.3]", "model.std=[0.2,0.3,0.4]", "model.crop=0.8")
    names = ("outline", "few", "tinted")
    for method in ("fine_tune", "visual_prompt"):
        builder, cell = grid.build(f"method={method}", *words)
        model = EvaluatedModel.named("alone", {cell.name: 1.0})
        passes.evaluate(builder, [model.mix], names, "all")
        in_grid = [on_set(builder, [model], name, "all")[0] for name in names]
        expected = {row.evaluated_on: row.accuracy_pct for row in in_grid}
        for place in (cell.artifact.folder, cell.artifact.folder / "weights.safetensors"):
            call = ("--models", str(place), "--sets", *names, "--mask", "present")
            rows = rib(user_grid, monkeypatch, *call)
            actual = {row["evaluated_on"]: float(row["accuracy_pct"]) for row in rows}
            assert actual == pytest.approx(expected)
    shutil.copytree(cell.artifact.folder, "small")
    save_file({"prompt": torch.zeros(3, 8, 8)}, "small/prompt.safetensors")
    call = ("--models", "small", "--sets", "outline", f"runs={user_grid.runs}", "--force")
    assert cli.main(["evaluate", *call]) == 2
    assert "not a prompt for images of 32 px" in capsys.readouterr().err


def test_a_mixed_cell_says_that_it_has_no_weights(grid):
    _, cell = grid.build("method=wise_ft")
    with pytest.raises(ValueError, match=r"wise_ft-outline-.* is a mix .*`rib evaluate --campaign"):
        checkpoint_in(cell.artifact.folder)
    with pytest.raises(ValueError, match=r"contains no checkpoint \(weights\.safetensors, mod"):
        checkpoint_in(grid.folder)


def test_timms_file_beside_the_weights_is_used(user_grid):
    file, config = user_grid.folder / "A.safetensors", user_grid.folder / "config.json"

    def resolved(arch: str | None = None) -> ModelRecipe:
        described = beside([file], arch)
        known, settings = user_models.model_of(described, arch)
        return user_models.resolve(known, parsed([settings])).model

    with pytest.raises(ValueError, match=r"A\.safetensors does not name .*name it with --arch"):
        resolved()
    config.write_text(json.dumps({"architecture": VIT, "pretrained_cfg": TIMMS}))
    for model in (resolved(), resolved(VIT), resolved(f"{VIT}.r160_in1k")):
        assert (model.arch, model.image_size, model.crop) == (VIT, SIZE, 1.0)
        assert (model.mean, model.std) == (TIMMS["mean"], TIMMS["std"])
        assert (model.interpolation, model.crop_mode) == ("bilinear", "center")
    with pytest.raises(ValueError, match=r"config\.json says .* is test_vit, not test_resnet"):
        resolved("test_resnet")
    squashed = {"architecture": VIT, "pretrained_cfg": TIMMS | {"crop_mode": "squash"}}
    config.write_text(json.dumps(squashed))
    assert image_transform.transform(resolved()).crop_mode == "squash"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"architecture": VIT}),
        ("config.json", {"architecture": VIT, "pretrained_cfg": TIMMS | {"input_size": None}}),
        ("cell.json", {"model": {"arch": [VIT]}, "classes": ["a"]}),
    ],
)
def test_a_foreign_file_is_refused_or_passed_over_with_a_word(tmp_path, name, values, caplog):
    (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=rf"{name} was not written by .*name the architecture with --arch"
    ):
        read_description(tmp_path / name)
    if name == "config.json":
        file = tmp_path / "A.safetensors"
        assert beside([file], VIT) == {file: None}
        assert "config.json was not written by timm" in caplog.text


def test_a_model_that_timm_makes_otherwise_is_refused(user_grid):
    folder = user_grid.folder / "made"

    def described(arch: str | None = None, **options: Any) -> Any:
        net = timm.create_model(VIT, num_classes=len(CLASSES), **options)
        timm.models.save_for_hf(net, folder, model_config={"label_names": list(CLASSES)})
        return beside([folder / "model.safetensors"], arch)

    assert user_models.model_of(described(img_size=SIZE), None)[0] == VIT
    for arch, options, message in (
        (None, {"global_pool": "max"}, r"was made with global_pool=max, which the engine"),
        (VIT, {"qk_norm": True}, r"was made with .*qk_norm=True"),
    ):
        with pytest.raises(ValueError, match=message):
            described(arch, **options)
    wide = {"architecture": VIT, "pretrained_cfg": TIMMS | {"input_size": [3, SIZE, 2 * SIZE]}}
    (folder / "config.json").write_text(json.dumps(wide))
    with pytest.raises(ValueError, match=r"made with input_size=\[3, 32, 64\], which the engine"):
        beside([folder / "model.safetensors"], VIT)


def test_classes_of_timms_file_are_used(user_grid, monkeypatch):
    folder, accuracies = user_grid.folder / "hub", set()
    folder.mkdir()
    checkpoint(folder / "model.safetensors", 0)
    call = ("--models", "hub", "--sets", "outline")
    for order in (CLASSES, CLASSES[::-1]):
        config = {"architecture": VIT, "pretrained_cfg": TIMMS, "label_names": list(order)}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "names.txt").write_text("\n".join(order) + "\n")
        (row,) = rib(user_grid, monkeypatch, *call)
        for names in ("names.txt", "config.json"):
            assert rib(user_grid, monkeypatch, *call, "--classes", f"hub/{names}") == [row]
        accuracies.add(row["accuracy_pct"])
    assert len(accuracies) == 2


def test_what_models_say_must_agree(user_grid):
    def stored_cell(name: str, classes: Sequence[str] = CLASSES, crop: float = 1.0) -> Path:
        file = user_grid.folder / name / "weights.safetensors"
        file.parent.mkdir()
        model = {"arch": VIT, "image_size": SIZE, "crop_pct": crop}
        described = {"entries": [], "classes": list(classes), "model": model}
        (file.parent / "cell.json").write_text(json.dumps(described))
        return file

    bare, cell = user_grid.folder / "A.safetensors", stored_cell("cell")
    turned, small = stored_cell("turned", CLASSES[::-1]), stored_cell("small", crop=0.9)
    both = beside([cell, bare], None)
    settings = {"model.arch": VIT, "model.image_size": SIZE, "model.crop": 1.0}
    assert user_models.model_of(both, None) == (VIT, settings)
    assert user_models.classes_of(beside([bare], VIT)) is None
    for files, message in (
        ([cell, bare], r"classes of .*A.safetensors.* add --classes .*cell/cell.json"),
        ([cell, turned], r"cell/cell.json and .*turned/cell.json have different classes"),
        ([cell, small], r"cell.json says crop_pct 1.0, .*small/cell.json says 0.9: give"),
    ):
        described = beside(files, None)
        with pytest.raises(ValueError, match=message):
            user_models.model_of(described, None)
            user_models.classes_of(described)


def test_a_list_of_classes_is_a_text_or_a_models_description(tmp_path):
    for name, content, message in (
        ("cell.json", b'{"model": {"arch": "x"}, "classes": ["a", "b"]}', None),
        ("names.txt", b"a\n\n b \n", None),
        ("windows.txt", b"\xef\xbb\xbfa\r\nb\r\n", None),
        ("none.txt", b"\n \n", r"none\.txt names no classes: write them in the head's"),
        ("A.safetensors", b"\xff", r"A\.safetensors is not a list of class names"),
    ):
        (tmp_path / name).write_bytes(content)
        if message is None:
            assert read_classes(tmp_path / name) == ("a", "b")
            continue
        with pytest.raises(ValueError, match=message):
            read_classes(tmp_path / name)


def saved(folder: Path, **changes: object) -> Path:
    """A folder that timm wrote, with changes to its `config.json`."""
    net = timm.create_model(VIT, num_classes=len(CLASSES), img_size=SIZE)
    timm.models.save_for_hf(net, folder, model_config={"label_names": list(CLASSES)})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("command", ["evaluate", "merge", "campaign"])
@pytest.mark.parametrize("scheme", ["hf-hub:evil/tracker", "hf_hub:evil/tracker", "local-dir:{}"])
def test_no_name_of_a_config_leads_elsewhere(command, scheme, grid, tmp_path, monkeypatch, capsys):
    elsewhere, opened = saved(tmp_path / "elsewhere"), []
    mine = saved(tmp_path / "mine", architecture=scheme.format(elsewhere))
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", lambda *a, **k: opened.append(a))
    read = timm.models._hub.load_model_config_from_path
    monkeypatch.setattr(
        timm.models._hub, "load_model_config_from_path", lambda *a: opened.append(a) or read(*a)
    )
    monkeypatch.setattr(
        timm.models._factory, "load_model_config_from_path", lambda *a: opened.append(a) or read(*a)
    )
    monkeypatch.setattr(
        timm.models._factory, "load_model_config_from_hf", lambda *a, **k: opened.append(a)
    )
    place = str(mine)
    words = {
        "evaluate": ["evaluate", "--models", place, "--sets", str(grid.folder / "outline")],
        "merge": ["merge", "soup", place, str(tmp_path / "other"), "--out", str(tmp_path / "out")],
        "campaign": ["campaign", "emoji", f"model=local-dir:{place}", "--dry-run"],
    }[command]
    shutil.copytree(mine, tmp_path / "other")
    assert cli.main([*words, f"runs={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert "config.json" in error and "timm has no architecture" in error, error
    assert not opened


def test_averages_that_are_not_read_are_named(grid, tmp_path, capsys, caplog):
    """timm's training script keeps them beside the weights."""
    net = timm.create_model(VIT, num_classes=len(CLASSES), img_size=SIZE)
    state = net.state_dict()
    ema = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": ema}, tmp_path / "last.pth")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    words = ["evaluate", "--models", str(tmp_path / "last.pth"), "--arch", VIT]
    words += ["--sets", str(grid.folder / "outline"), "--classes", str(tmp_path / "classes.txt")]
    words += ["--out", str(tmp_path / "a.csv"), f"model.image_size={SIZE}", f"runs={tmp_path}"]
    assert cli.main([*words, "device=cpu"]) == 0
    assert "last.pth also has state_dict_ema" in caplog.text
