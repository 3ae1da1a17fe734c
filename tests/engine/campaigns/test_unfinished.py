"""`rib report` of a campaign that has not finished: what is there, and why the rest is not."""

import pytest
import torch

from engine import cli
from engine.campaigns import job_states, workflow
from engine.campaigns.column_job import make_column
from engine.campaigns.events import recorded
from engine.campaigns.plan import PAGE, REPORT
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.prepare_job import prepare
from helpers import campaigns

CPU = torch.device("cpu")


@pytest.mark.slow
def test_finished_columns_are_reported_and_the_others_named(folder, grid, capsys):
    plan = campaigns.planned(folder, f"runs={folder / 'partial'}")
    prepare(plan, CPU)
    with (
        pytest.raises(ValueError, match="no room"),
        recorded(plan.place, "column-few"),
    ):
        raise ValueError("no room")
    assert cli.main(["report", str(plan.place.campaign)]) == 2
    error = capsys.readouterr().err
    assert "no column of" in error and "column-few failed: no room" in error

    for column in plan.columns[:2]:
        make_column(plan, column, CPU)
        job_states.set_done(plan.place, column.job)
    moved = plan.place.campaign.rename(plan.place.campaign.with_name("moved"))
    # As while it runs, when its own report is not touched.
    with workflow.locked(PlanFolder(moved / "plans" / plan.place.name)):
        assert cli.main(["report", str(moved)]) == 0
    so_far = moved / "report-so-far"
    assert not (moved / REPORT).exists() and (so_far / PAGE).is_file()
    assert cli.main(["report", str(moved)]) == 0
    shown = moved / REPORT
    rows = (shown / "tables" / "missing-columns.csv").read_text().splitlines()
    assert rows[1:] == ["few,column-few failed: no room"]
    accuracy = (shown / "accuracy.csv").read_text()
    assert ",outline,few," in accuracy and ",few,outline," not in accuracy
    page = (shown / "index.html").read_text()
    assert "models fine-tuned on few are not in this report" in page
    assert "0.9, 0.999" in page and "(0.9, 0.999)" not in page  # as in a record that was read
    assert not list(moved.glob("plans/*/evaluations.json"))  # it still counts as unfinished
