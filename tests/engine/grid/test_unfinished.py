"""`rib report` of a campaign that has not finished: what is there, and why the rest is not."""

from __future__ import annotations

from pathlib import Path

import campaigns
import grids
import pytest
import torch

from engine import cli
from engine.commands import report
from engine.grid import campaign, jobs, workflow

folder, grid = campaigns.folder, grids.grid
CPU = torch.device("cpu")


@pytest.mark.slow
def test_finished_columns_are_reported_and_the_others_named(
    folder: Path, grid: grids.Grid, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={folder / 'partial'}"], 1)
    place = plan.path.parent
    with workflow.locked(plan.folder):
        place.mkdir(parents=True)
        plan.path.write_bytes(workflow.plan_text(plan))
        jobs.prepare(plan, CPU)
    (place / workflow.FILE).write_text('{"command": "job prepare --device cpu"}')
    (place / "logs").mkdir()
    (place / "logs" / "column-few.log").write_text("error: no room\nexit code 2\n")
    assert cli.main(["report", str(plan.folder)]) == 2
    error = capsys.readouterr().err
    assert "no column of" in error and "column-few failed (exit code 2): error: no room" in error

    for column in plan.columns[:2]:
        jobs.column(plan, column, CPU)
    assert cli.main(["report", str(plan.folder)]) == 0
    shown = plan.folder / campaign.REPORT
    rows = (shown / "tables" / "missing-columns.csv").read_text().splitlines()
    assert rows[1:] == ["few,column-few failed (exit code 2): error: no room"]
    accuracy = (shown / "accuracy.csv").read_text()
    assert ",outline,few," in accuracy and ",few,outline," not in accuracy
    assert "models fine-tuned on few are not in this report" in (shown / "index.html").read_text()
    assert not (place / campaign.RECORD).exists()  # the campaign still counts as unfinished


def test_the_device_is_read_where_the_jobs_file_is_damaged(folder: Path, tmp_path: Path) -> None:
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 1)
    plan.path.parent.mkdir(parents=True)
    file = plan.path.parent / workflow.FILE
    assert report._device_of(plan) == "auto"
    file.write_bytes(b'\xfe{"command": "job prepare --device cpu"}')
    assert report._device_of(plan) == "cpu"


def test_a_plan_that_is_missing_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"plan\.json is missing; run `rib campaign` again"):
        campaign.read(tmp_path / "plan.json")
