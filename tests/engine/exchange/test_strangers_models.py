"""Names in a stranger's model folder open neither the network nor another folder."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

from engine import cli
from helpers.grids import CLASSES, SIZE, VIT


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
