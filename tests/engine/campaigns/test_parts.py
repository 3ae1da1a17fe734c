"""The parts of a record that jobs write, and reports that join those that are there."""

import shutil
import sys

import pytest

from engine import cli
from engine.campaigns import job_states, make_record, parts, record, workflow
from engine.campaigns.events import recorded
from engine.campaigns.plan import DISTANCES, PAGE, PREPARE, REPORT, Plan, read_plan
from engine.campaigns.plan_folder import PlanFolder
from engine.commands import job
from engine.evaluation import passes
from helpers import campaigns
from helpers.processes import WITHOUT_TORCH, run

pytestmark = pytest.mark.slow


@pytest.fixture
def plan(finished, tmp_path) -> Plan:
    """The plan of a copy of the finished campaign."""
    (place,) = shutil.copytree(finished, tmp_path / "runs").glob("shapes/plans/*")
    return read_plan(PlanFolder(place))


def test_the_reports_job_needs_no_torch_packs_or_weights(plan):
    expected = (plan.place.report / "accuracy.csv").read_bytes()
    before = plan.place.record.read_bytes()
    shutil.rmtree(plan.place.report)
    plan.place.record.unlink()
    for kind in ("packs", "store/weights", "store/features", "store/distances"):
        shutil.rmtree(plan.place.runs / kind)
    for weights in plan.place.store.glob("cells/*/weights.safetensors"):
        weights.unlink()
    program = [sys.executable, "-P", "-m", "engine.commands.job", REPORT]
    words = ["--plan", str(plan.place.plan)]
    process = run([*program, *words], **WITHOUT_TORCH)
    assert process.returncode == 0, process.stderr
    assert plan.page.is_file() and plan.place.record.read_bytes() == before
    assert (plan.place.report / "accuracy.csv").read_bytes() == expected


def test_a_column_that_ended_early_leaves_no_part(plan, monkeypatch):
    column = plan.columns[0]
    part = plan.place.path / parts.FOLDER / f"{column.job}.json"
    part.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(passes, "evaluate", lambda *_: [].index("killed"))
        with pytest.raises(ValueError):
            campaigns.do(plan, column.job)
    assert not part.exists()
    campaigns.do(plan, column.job)
    assert part.is_file()


def test_distances_are_a_job_that_needs_the_preparation_alone(folder, grid, tmp_path):
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    campaigns.do(plan, PREPARE)
    assert parts.has_part(plan.place, PREPARE) and not parts.has_part(plan.place, DISTANCES)
    campaigns.do(plan, DISTANCES)
    matrix = parts.read_part(plan.place, DISTANCES, parts.Distances).matrix
    assert matrix is not None and list(matrix["names"]) == ["upstream", *campaigns.SETS]


@pytest.mark.parametrize("pattern", ["predictions/*-few-on-outline-*", "cells/fine_tune-few-*"])
def test_a_part_that_lacks_its_artefacts_is_named_and_made_again(
    folder, plan, monkeypatch, capsys, pattern
):
    ran = campaigns.in_this_process(monkeypatch)
    expected = record.read_record(plan.place).record
    lost = next(plan.place.store.glob(pattern))
    shutil.rmtree(lost)
    with pytest.raises((OSError, ValueError), match=f"{lost.name}.*campaign"):
        make_record.record_of(plan)
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={plan.place.runs}"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert ran == plan.jobs and lost.is_dir()
    again = record.read_record(plan.place).record
    assert (again.files, again.artifacts) == (expected.files, expected.artifacts)


def test_a_part_that_was_altered_is_named_and_written_anew(plan):
    path = plan.place.path / parts.FOLDER / f"{plan.columns[0].job}.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"wise_ft"', b'"other"', 1))
    with pytest.raises(ValueError, match=f"{path.name} was altered; run `rib campaign` again"):
        job.report(plan)
    campaigns.do(plan, plan.columns[0].job)
    assert path.read_bytes() == before


def test_finished_columns_are_reported_and_the_others_named(folder, grid, capsys):
    plan = campaigns.planned(folder, f"runs={folder / 'partial'}")
    campaigns.do(plan, PREPARE)
    with pytest.raises(ValueError, match="no room"), recorded(plan.place, "column-few"):
        raise ValueError("no room")
    assert cli.main(["report", str(plan.place.campaign)]) == 2
    error = capsys.readouterr().err
    assert "no column of" in error and "column-few failed: no room" in error

    for column in plan.columns[:2]:
        campaigns.do(plan, column.job)
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
