"""A campaign's job counts as finished where its files are there, whatever a marker says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import campaigns
import pytest
import reports
import torch
from damage import empty, flip

from engine.grid import campaign, jobs, make_record, markers, record, stamp
from engine.grid.campaign import Plan
from engine.grid.job_graph import REPORT
from engine.store.artifacts import Artifact, Store
from loaders.schema import DamagedFile

folder = campaigns.folder


@pytest.fixture
def plan(folder: Path, tmp_path: Path) -> Plan:
    """A plan whose jobs are done: a report, a record of predictions, and a cell."""
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 1)
    run = reports.finished(tmp_path, downstreams=list(reports.SETS))
    record.write(plan.path.parent, run.record)
    report = campaign.report_page(plan).parent
    report.mkdir(parents=True)
    for name in (campaign.PAGE, campaign.TABLE, "accuracy.csv"):
        (report / name).write_text(f"{name} with its numbers")
    stamp.write(report, plan.path.parent.name)
    markers.leave(plan, "prepare", [])
    markers.leave(plan, "column-few", [cell(tmp_path)])
    markers.leave(plan, REPORT, [])
    return plan


def cell(runs: Path) -> Artifact:
    build = lambda folder: (folder / "weights").write_bytes(b"1")  # noqa: E731
    return Store(runs / "store").make("cells", "ft", {"lr": 1}, build)


def remaining(plan: Plan) -> set[str]:
    """The markers that remain once the misleading ones are gone."""
    markers.forget_misleading(plan)
    return {path.name for path in (plan.path.parent / "done").glob("*")}


def test_a_campaign_is_finished_when_all_is_there(plan: Plan) -> None:
    assert markers.finished(plan)
    assert remaining(plan) == {"prepare", "column-few", REPORT}
    assert markers.finished(plan)


def test_a_folder_in_place_of_a_marker_is_named_with_a_remedy(plan: Plan) -> None:
    marker = plan.path.parent / "done" / "column-few"
    marker.unlink()
    marker.mkdir()
    with pytest.raises(DamagedFile, match=r"column-few is a folder .*; move it away"):
        markers.finished(plan)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = [Path.unlink, shorten, flip, empty]


@pytest.mark.parametrize("name", ["index.html", "table.txt", "accuracy.csv", "plan"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_the_report_costs_the_report_alone(
    plan: Plan, damage: Callable[[Path], object], name: str
) -> None:
    damage(campaign.report_page(plan).with_name(name))
    assert not markers.finished(plan)
    assert remaining(plan) == {"prepare", "column-few"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_costs_the_report_alone(
    plan: Plan, damage: Callable[[Path], object]
) -> None:
    damage(plan.path.with_name(campaign.RECORD))
    assert not markers.finished(plan)
    assert remaining(plan) == {"prepare", "column-few"}


def test_a_missing_prediction_costs_all_markers(plan: Plan) -> None:
    run = record.read(plan.path.parent)
    (run.store / run.record.evaluations[3].path).unlink()
    assert not markers.finished(plan)
    assert remaining(plan) == set()


def test_a_missing_cell_costs_the_marker_of_its_column(plan: Plan, tmp_path: Path) -> None:
    Store(tmp_path / "store").remove(cell(tmp_path))
    assert not markers.finished(plan)
    assert remaining(plan) == {"prepare"}


def test_jobs_that_did_parts_run_again_with_the_job_that_completes_them(
    plan: Plan, tmp_path: Path
) -> None:
    for part in ("evaluate-few.1of2", "evaluate-few.2of2", "evaluate-fewer"):
        markers.leave(plan, part, [])
    markers.leave(plan, "evaluate-few", [cell(tmp_path)])
    Store(tmp_path / "store").remove(cell(tmp_path))
    assert remaining(plan) == {"prepare", "evaluate-fewer"}


def test_a_marker_that_cannot_be_read_is_removed(plan: Plan) -> None:
    (plan.path.parent / "done" / "column-few").write_bytes(b"\xff\0" * 5000)
    assert remaining(plan) == {"prepare"}


def test_without_a_store_no_marker_stays(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "away")
    plan.path.with_name(campaign.RECORD).unlink()
    (plan.path.parent / "done" / "column-few").write_text("")  # of an older version
    assert remaining(plan) == set()


def test_a_report_of_another_plan_is_not_this_ones(plan: Plan) -> None:
    stamp.write(campaign.report_page(plan).parent, "another")
    assert not markers.finished(plan)


def test_an_older_stamp_names_its_plan_alone(plan: Plan) -> None:
    report = campaign.report_page(plan).parent
    (report / stamp.STAMP).write_text(plan.path.parent.name)
    assert markers.finished(plan)
    empty(report / campaign.TABLE)  # what the command ends by printing
    assert not markers.finished(plan)


def test_a_report_trains_nothing_and_encodes_nothing(folder: Path, tmp_path: Path) -> None:
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 1)
    with pytest.raises(FileNotFoundError, match=r"the packs of upstream, outline, .* run the"):
        make_record.record_of(plan, torch.device("cpu"))
    assert not list(tmp_path.iterdir())
    builder = jobs.builder_of(plan, torch.device("cpu"), finds_only=True)
    with pytest.raises(FileNotFoundError, match=r"store/weights/test_vit-.* is missing: run the"):
        builder.build()
    assert not (tmp_path / "store").exists()
