"""`rib export`: timm, given the folder alone, answers as the campaign's stored predictions do."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

import engine
from engine import cli
from engine.campaigns.find_campaign import find_campaign
from engine.exchange import export
from engine.measures.rows import Setting
from engine.recipe.overrides import parsed
from helpers import campaigns, grids
from helpers.grids import CLASSES
from loaders.files.root import Root

pytestmark = pytest.mark.slow
MORE = """  soup: {method: {members: [pretrained, fine_tune]}}
  visual_prompt: {}
downstreams: [few]
"""


@pytest.fixture(scope="module")
def finished(folder, grid) -> list[str]:
    """The words that name a campaign with mixes and a prompt."""
    # Neither mean nor crop are the architecture's: both must come from the exported folder.
    model = (folder / "model.yaml").read_text().replace("crop: 1.0", "crop: 0.8")
    (folder / "cropped.yaml").write_text(f"{model}std: [0.2, 0.3, 0.4]\n")
    text = (folder / "shapes.yaml").read_text().replace("model.yaml", "cropped.yaml")
    text = text.replace("0.0, 0.5", "0.0, 0.25").replace("  linear_probe: {}\n", "")
    (folder / "exported.yaml").write_text(text + MORE)
    words = [f"runs={folder / 'exported'}"]
    campaigns.run(folder, *words, name="exported")
    return [str(folder / "exported.yaml"), *words]


def exported(finished: list[str], out: Path, *options: str) -> Path:
    assert cli.main(["export", *finished, "--out", str(out), *options]) == 0
    return out


def images(net: torch.nn.Module, folder: Path) -> torch.Tensor:
    """A set's images in the order of its pack, by timm's own transform for a model."""
    transform = create_transform(**resolve_data_config({}, model=net), is_training=False)
    files = sorted(folder.glob("*/*.png"))
    return torch.stack([transform(Image.open(file).convert("RGB")) for file in files])


@pytest.mark.parametrize("method", ["pretrained", "fine_tune", "wise_ft", "soup", "visual_prompt"])
def test_timm_answers_as_the_campaign_did(finished, folder, tmp_path, capsys, method):
    words = ["--method", method, *(["--downstream", "few"] if method != "pretrained" else [])]
    words += ["--alpha", "0.25"] if method == "wise_ft" else []
    out = exported(finished, tmp_path / "m", *words)
    lacks = "the model lacks its input prompt" in capsys.readouterr().out
    assert lacks == (method == "visual_prompt")
    net = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert net.pretrained_cfg["label_names"] == list(CLASSES)
    prompt = load_file(out / "prompt.safetensors")["prompt"] if lacks else 0
    for name in ("outline", "few"):
        rows = engine.predictions(finished[0], [name], finished[1])
        rows = rows[(rows["method"] == method) & rows["alpha"].isin([None, 0.25])]
        rows = rows.sort_values("index")
        with torch.no_grad():
            logits = net(images(net, folder / "images" / name) + prompt)[rows["index"].to_numpy()]
        if name == "few":  # evaluated over its own three classes
            logits[:, [i for i, shape in enumerate(CLASSES) if shape not in grids.FEW]] = -torch.inf
        p_top1, top1 = logits.softmax(dim=1).max(dim=1)
        assert top1.tolist() == rows["top1"].to_list() and len(rows) > 4
        np.testing.assert_allclose(p_top1.numpy(), rows["p_top1"].to_numpy(), atol=2e-6)


def test_a_cells_folder_is_exported_as_its_row_is(finished, folder, tmp_path):
    (cell,) = (folder / "exported" / "store" / "cells").glob("wise_ft-few-*")
    alpha = ("--alpha", "0.25")
    of_cell = exported([str(cell)], tmp_path / "cell", *alpha)
    of_row = exported(
        finished, tmp_path / "row", "--method", "wise_ft", "--downstream", "few", *alpha
    )
    assert grids.same(*(load_file(p / "model.safetensors") for p in (of_cell, of_row)))


def test_classes_are_named_by_a_file_of_as_many_lines(finished, tmp_path, capsys):
    names, out = tmp_path / "names.txt", tmp_path / "soup"
    names.write_text("\n".join(CLASSES[:-1]))
    words = ("--method", "soup", "--downstream", "few", "--classes", str(names))
    assert cli.main(["export", *finished, "--out", str(out), *words]) == 2
    assert "4 class names for the 5 outputs" in capsys.readouterr().err
    names.write_text("\n".join("vwxyz"))
    config = json.loads((exported(finished, out, *words) / "config.json").read_text())
    assert config["label_names"] == list("vwxyz")


def test_a_folder_that_is_there_is_written_over_by_force_alone(
    finished, tmp_path, capsys, monkeypatch
):
    out = exported(finished, tmp_path / "m", "--method", "visual_prompt", "--downstream", "few")
    (out / "notes.txt").write_text("mine")
    before = (out / "model.safetensors").read_bytes()
    words = ["export", *finished, "--method", "fine_tune", "--downstream", "few", "--out", str(out)]
    assert cli.main(words) == 2
    assert f"{out} exists already: replace it with --force" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert cli.main([*words, "--force"]) == 0
    assert (out / "model.safetensors").read_bytes() != before
    names = {"config.json", "model.safetensors", "notes.txt", "README.md"}
    assert {p.name for p in out.iterdir()} == names

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Root, "rename", killed)
    assert cli.main([*words, "--force"]) == 130
    assert not (out / "config.json").exists(), "of other weights than those beside it, perhaps"


def test_the_weights_of_a_prompted_cell_are_no_base_alone(finished, folder, grid):
    (cell,) = (folder / "exported" / "store" / "cells").glob("visual_prompt-few-*")
    of_file = ("model.weights.source=file", f"model.weights.path={cell / 'weights.safetensors'}")
    with pytest.raises(ValueError, match="has an input prompt, which would be lost"):
        grid.builder(*of_file).base  # noqa: B018


def test_which_row_is_never_guessed_and_a_parent_that_is_gone_is_named(
    finished, folder, tmp_path, capsys
):
    (cell,) = (folder / "exported" / "store" / "cells").glob("fine_tune-few-*")
    cell.rename(tmp_path / "away")
    row = ["--downstream", "few", "--method"]
    for words, message in (
        ([], "such row: add --method, one of pretrained, fine_tune, wise_ft"),
        (["--method", "ewc"], "no row has --method ewc: choose pretrained, fine_tune"),
        ([*row, "wise_ft"], "add --alpha, one of 0, 0.25"),
        ([*row, "fine_tune", "--alpha", "1"], "this row has none"),
        ([*row, "fine_tune", "--seed", "7"], "no row has --seed 7: choose 0"),
        ([*row, "soup"], f"no finished cell {cell.name}"),
    ):
        assert cli.main(["export", *finished, "--out", str(tmp_path / "m"), *words]) == 2
        error = capsys.readouterr().err
        assert message in error
    assert "; run `rib campaign " in error
    campaign = find_campaign(finished[0], parsed(finished[1:]))
    row = next(row for row in campaign.record.evaluations if row.method == "soup")
    with pytest.raises(ValueError, match=r"to keep them, run .* in another folder"):
        export.row_of_campaign(campaign, dataclasses.replace(row, setting=Setting(step=2)))
    (tmp_path / "away").rename(cell)
    assert not list(tmp_path.iterdir())
