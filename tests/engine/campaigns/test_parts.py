"""The parts of a campaign's record that its jobs write, and the report's job that joins them."""

import shutil
import sys

import pytest
import torch

from engine import cli
from engine.campaigns import make_record, parts, record
from engine.campaigns.column_job import make_column
from engine.campaigns.distances_job import make_distances
from engine.campaigns.parts import Models
from engine.campaigns.plan import DISTANCES, PREPARE, REPORT, Plan, read_plan
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.prepare_job import prepare
from engine.commands import job
from engine.evaluation import passes
from helpers import campaigns
from helpers.processes import ROOT, run

CPU = torch.device("cpu")
ABSENT = "torch,timm,deepspeed,triton,open_clip,ffcv"
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
    paths = f"{ROOT / 'tests' / 'without_packages'}:{ROOT}"
    program = [sys.executable, "-P", "-m", "engine.commands.job", REPORT]
    words = ["--plan", str(plan.place.plan)]
    process = run([*program, *words], WITHOUT_PACKAGES=ABSENT, PYTHONPATH=paths)
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
            make_column(plan, column, CPU)
    assert not part.exists()
    make_column(plan, column, CPU)
    assert part.is_file()


def test_distances_are_a_job_that_needs_the_preparation_alone(folder, grid, tmp_path):
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    prepare(plan, CPU)
    assert parts.has_part(plan.place, PREPARE) and not parts.has_part(plan.place, DISTANCES)
    make_distances(plan, CPU)
    matrix = parts.read_part(plan.place, DISTANCES, parts.Distances).matrix
    assert matrix is not None and list(matrix["names"]) == ["upstream", *campaigns.SETS]


@pytest.mark.parametrize("pattern", ["predictions/*-few-on-outline-*", "cells/fine_tune-few-*"])
def test_a_part_that_lacks_its_artefacts_is_named_and_made_again(
    folder, plan, monkeypatch, capsys, pattern
):
    ran = campaigns.in_this_process(monkeypatch)
    expected = record.read(plan.place).record
    lost = next(plan.place.store.glob(pattern))
    shutil.rmtree(lost)
    with pytest.raises((OSError, ValueError), match=f"{lost.name}.*campaign"):
        make_record.record_of(plan)
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={plan.place.runs}"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert ran == plan.jobs and lost.is_dir()
    again = record.read(plan.place).record
    assert (again.files, again.artifacts) == (expected.files, expected.artifacts)


def test_a_part_that_was_altered_is_named_and_written_anew(plan):
    path = plan.place.path / parts.FOLDER / f"{plan.columns[0].job}.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"wise_ft"', b'"other"', 1))
    with pytest.raises(ValueError, match=f"{path.name} was altered; run `rib campaign` again"):
        job.report(plan)
    make_column(plan, plan.columns[0], CPU)
    assert path.read_bytes() == before


def test_a_selection_of_rows_takes_their_parts(folder, plan, monkeypatch):
    """Its record is that of a campaign whose jobs look everything up."""
    ran = campaigns.in_this_process(monkeypatch)
    words = [str(folder / "shapes.yaml"), f"runs={plan.place.runs}", "methods=[wise_ft]"]
    assert cli.main(["campaign", *words]) == 0
    assert ran == [REPORT]
    (place,) = plan.place.runs.glob("shapes-*/plans/*")
    selection = read_plan(PlanFolder(place))
    of_column = [column.job for column in selection.columns]
    taken = [parts.read_part(selection.place, name, Models) for name in of_column]
    assert {row.method for row in taken[0].evaluations} == {"wise_ft"} == taken[0].cells.keys()
    joined = selection.place.record.read_bytes()
    for name in selection.jobs:
        campaigns.do(selection, name)
    assert [parts.read_part(selection.place, name, Models) for name in of_column] == taken
    assert selection.place.record.read_bytes() == joined
