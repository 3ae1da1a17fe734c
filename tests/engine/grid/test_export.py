"""`rib export`: timm, given the folder alone, answers as the campaign's stored predictions do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import campaigns
import grids
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from grids import CLASSES
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

from engine import cli
from engine.grid import record
from engine.recipe import load

folder, grid = campaigns.folder, grids.grid
MORE = "  soup: {method: {members: [pre, fine_tune, linear_probe]}}\n  visual_prompt: {}\n"


@dataclass(frozen=True)
class Finished:
    """A campaign with mixes and a prompt, and the words that name it."""

    folder: Path

    @property
    def words(self) -> list[str]:
        return [str(self.folder / "exported.yaml"), f"runs={self.folder / 'exported'}"]

    @property
    def run(self) -> record.FinishedCampaign:
        return record.find(self.words[0], self.words[1:])

    @property
    def cells(self) -> Path:
        return self.folder / "exported" / "store" / "cells"

    def export(self, out: Path, *options: str) -> Path:
        assert cli.main(["export", *self.words, "--out", str(out), *options]) == 0
        return out

    def stored(self, row: dict[str, object], name: str) -> pa.Table:
        """The campaign's predictions of a row on a set."""
        (evaluation,) = (
            candidate
            for candidate in self.run.record.evaluations
            if row.items() <= vars(candidate).items() and candidate.evaluated_on == name
        )
        return pq.read_table(self.run.store / evaluation.path)

    def files(self, name: str) -> list[Path]:
        """The images of a set in the order of its pack."""
        return sorted((self.folder / "images" / name).glob("*/*.png"))


@pytest.fixture(scope="module")
def finished(folder: Path, grid: grids.Grid) -> Finished:
    finished = Finished(folder)
    text = (folder / "shapes.yaml").read_text().replace("0.0, 0.5", "0.0, 0.25") + MORE
    # Neither mean nor crop are the architecture's: both must come from the exported folder.
    model = (folder / "model.yaml").read_text() + "crop: 0.8\nstd: [0.2, 0.3, 0.4]\n"
    (folder / "cropped.yaml").write_text(model)
    Path(finished.words[0]).write_text(text.replace("model.yaml", "cropped.yaml"))
    name = Path(finished.words[0]).stem
    campaigns.run(folder, *finished.words[1:], name=name)
    return finished


def logits(net: nn.Module, files: list[Path], prompt: torch.Tensor | None = None) -> torch.Tensor:
    """float32 [n, 5] of image files through timm's own transform for this model."""
    transform = create_transform(**resolve_data_config({}, model=net), is_training=False)
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        return net.eval()(images if prompt is None else images + prompt)


ROWS = [
    ("pre", "", None),
    ("fine_tune", "tinted", None),
    ("linear_probe", "few", None),
    ("wise_ft", "outline", 0.25),
    ("wise_ft", "outline", 1.0),
    ("soup", "few", None),
    ("visual_prompt", "tinted", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "downstream", "alpha"), ROWS)
def test_timm_answers_as_the_campaign_did(
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    method: str,
    downstream: str,
    alpha: float | None,
) -> None:
    words = ["--method", method, *(["--set", downstream] if downstream else [])]
    out = finished.export(tmp_path / "m", *words, *(["--alpha", str(alpha)] if alpha else []))
    assert ("timm's model lacks the input prompt" in capsys.readouterr().out) == (
        method == "visual_prompt"
    )
    net = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert net.pretrained_cfg["label_names"] == list(CLASSES)
    prompt = load_file(out / "prompt.safetensors")["prompt"] if "prompt" in method else None
    row = {"method": method, "downstream": downstream, "alpha": alpha}
    for name in ("outline", "few"):
        table = finished.stored(row, name)
        files = [finished.files(name)[i] for i in table["index"].to_numpy()]
        logits_NC = logits(net, files, prompt)
        if name == "few":  # evaluated over its own three classes
            absent = [i for i, shape in enumerate(CLASSES) if shape not in grids.FEW]
            logits_NC[:, absent] = -torch.inf
        p_top1, top1 = logits_NC.softmax(dim=1).max(dim=1)
        assert top1.tolist() == table["top1"].to_pylist()
        np.testing.assert_allclose(p_top1.numpy(), table["p_top1"].to_numpy(), atol=2e-6)


@pytest.mark.slow
def test_a_cells_folder_is_exported_as_its_row_is(finished: Finished, tmp_path: Path) -> None:
    (cell,) = finished.cells.glob("wise_ft-outline-*")
    words = ["export", str(cell), "--out", str(tmp_path / "cell"), "--alpha", "0.25"]
    assert cli.main(words) == 0
    row = finished.export(
        tmp_path / "row", "--method", "wise_ft", "--set", "outline", "--alpha", "0.25"
    )
    assert grids.same(*(load_file(p / "model.safetensors") for p in (tmp_path / "cell", row)))


@pytest.mark.slow
def test_classes_are_named_by_a_file_of_as_many_lines(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES[:-1]))
    words = ("--method", "soup", "--set", "few", "--classes", str(names))
    out = tmp_path / "soup"
    assert cli.main(["export", *finished.words, "--out", str(out), *words]) == 2
    assert "4 class names for the 5 outputs" in capsys.readouterr().err
    names.write_text("vwxyz".replace("", "\n").strip())
    config = json.loads((finished.export(out, *words) / "config.json").read_text())
    assert config["label_names"] == list("vwxyz")


@pytest.mark.slow
def test_a_folder_that_is_there_is_written_over_by_force_alone(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = finished.export(tmp_path / "m", "--method", "visual_prompt", "--set", "few")
    (out / "notes.txt").write_text("mine")
    before = (out / "model.safetensors").read_bytes()
    words = ["export", *finished.words, "--method", "fine_tune", "--set", "few", "--out", str(out)]
    assert cli.main(words) == 2
    assert f"{out} is there already: --force replaces it" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert cli.main([*words, "--force"]) == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "notes.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "more than one such row: add --method, one of pre, fine_tune, linear_probe,"),
        (["--method", "ewc"], "there is no row of --method ewc, only of pre, fine_tune"),
        (["--method", "wise_ft"], "add --set, one of outline, tinted, few"),
        (["--method", "wise_ft", "--set", "few"], "add --alpha, one of 0, 0.25"),
        (["--method", "fine_tune", "--set", "few", "--alpha", "1"], "this row has none"),
        (["--method", "fine_tune", "--set", "few", "--seed", "7"], "of --seed 7, only of 0"),
    ],
)
def test_which_row_is_never_guessed(
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    words: list[str],
    message: str,
) -> None:
    assert cli.main(["export", *finished.words, "--out", str(tmp_path / "m"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_parent_that_is_gone_is_named_with_what_makes_it_anew(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (cell,) = finished.cells.glob("fine_tune-tinted-*")
    cell.rename(tmp_path / "away")
    words = ["--out", str(tmp_path / "m"), "--method", "soup", "--set", "tinted"]
    try:
        assert cli.main(["export", *finished.words, *words]) == 2
    finally:
        (tmp_path / "away").rename(cell)
    shown = capsys.readouterr().err
    assert f"no finished cell {cell.name}" in shown and "; run `rib campaign " in shown


def test_a_campaign_that_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["export", "emoji", f"runs={tmp_path}", "--out", str(tmp_path / "m")]
    assert cli.main(words) == 2
    assert "holds no finished run of emoji" in capsys.readouterr().err


def test_clip_under_its_projection_is_no_model_of_timms(tmp_path: Path) -> None:
    from engine.data import descriptions
    from engine.grid import export

    resolved = load("imagenet_rib", ["model=vit_b16_clip_openai_zero_shot"])
    row = export.Row("pre", {}, descriptions.of_recipe(tmp_path, resolved, tmp_path), {})
    with pytest.raises(ValueError, match="is a CLIP tower under its projection, which timm has"):
        export.write(row, tmp_path / "m")
    assert not list(tmp_path.iterdir())
