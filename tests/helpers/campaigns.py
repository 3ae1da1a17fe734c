"""A campaign over the drawn shapes: three sets, three methods, seconds of training.

It is run once in a test run: `finished` is a copy of what it left.
"""

import contextlib
import csv
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from engine import cli
from engine.campaigns import job_states, record, workflow
from engine.campaigns.column_job import evaluate_share, make_cells, make_column
from engine.campaigns.distances_job import make_distances
from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import (
    DISTANCES,
    EVALUATE,
    PREPARE,
    REPORT,
    TRAIN,
    Plan,
    plan_to_json,
    read_plan,
    stage_of,
)
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.prepare_job import prepare
from engine.campaigns.record import FinishedCampaign
from engine.commands import job
from engine.recipe.finder import allow_users_files
from engine.recipe.overrides import parsed
from helpers import grids
from helpers.processes import heed_signals
from helpers.shared import of_all, once

SETS, METHODS = ("outline", "tinted", "few"), ("fine_tune", "linear_probe", "wise_ft")
GRID = """\
model: {folder}/model.yaml
dataset: {folder}/data.yaml
downstream: outline
device: cpu
optimizer: {{name: sgd, lr: 0.02}}
train: {{epochs: 2, batch_size: 12, warmup_steps: 2}}
methods:
  fine_tune: {{}}
  linear_probe: {{}}
  wise_ft: {{method: {{alphas: [0.0, 0.5, 1.0]}}}}
"""
MODEL = """\
name: tiny
arch: test_vit
image_size: 32
crop: 1.0
weights: {source: random}
head: {fit: true}
"""
DATA = "name: shapes\nkind: folder\nroot: {images}\nsets: [outline, tinted, few]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The campaign's YAML and a link to the drawings; a space in its path, as users have them."""
    folder = tmp_path_factory.mktemp("my campaign")
    describe(folder, _drawn(of_all(tmp_path_factory)))
    return folder


@pytest.fixture(scope="module")
def finished(folder, grid, tmp_path_factory) -> Path:
    """The `runs` folder of the campaign in `folder`, which is finished."""
    return shutil.copytree(_finished(of_all(tmp_path_factory)), folder / "runs")


def describe(folder: Path, images: Path) -> Path:
    """Write the campaign's files; that of the campaign itself."""
    (folder / "images").symlink_to(images)
    (folder / "model.yaml").write_text(MODEL)
    (folder / "data.yaml").write_text(DATA.format(images=images))
    file = folder / "shapes.yaml"
    file.write_text(GRID.format(folder=folder))
    return file


@functools.cache
def _drawn(base: Path) -> Path:
    """All campaigns of a test run have the same drawings, and so the same packs."""
    return once(base / "drawings", grids.draw)


@functools.cache
def _finished(base: Path) -> Path:
    def make(place: Path) -> None:
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            in_this_process(patch)
            file = describe(place, _drawn(base))
            assert cli.main(["campaign", str(file), f"runs={place / 'runs'}"]) == 0

    return once(base / "finished campaign", make) / "runs"


def in_this_process(patch: pytest.MonkeyPatch) -> list[str]:
    """Let `rib campaign` run its jobs here, as Snakemake would; returns the jobs that run.

    A job runs unless its marker is there and no job before it ran; one that fails leaves none.
    """
    ran: list[str] = []

    def run_snakemake(words: object, plans: Sequence[Plan], *_: object) -> None:
        for planned in plans:
            plan, before = read_plan(planned.place), len(ran)
            done = plan.place.path / job_states.DONE
            for name in plan.jobs:
                new = ran[before:]
                follows = PREPARE in new or (name == REPORT and new)
                if follows or not job_states.is_done(plan.place, name):
                    (done / name).unlink(missing_ok=True)
                    do(plan, name)
                    ran.append(name)
                    done.mkdir(parents=True, exist_ok=True)
                    (done / name).touch()

    patch.setattr(workflow, "run_snakemake", run_snakemake)
    return ran


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def do(plan: Plan, name: str) -> None:
    """A job of a plan, in this process."""
    device = torch.device("cpu")
    if name == PREPARE:
        with allow_users_files():
            prepare(plan, device)
    elif name == DISTANCES:
        make_distances(plan, device)
    elif name == REPORT:
        job.report(plan)
    elif stage_of(name) == EVALUATE:
        evaluate_share(plan, plan.shares[name], device)
    else:
        with allow_users_files():
            if stage_of(name) == TRAIN:
                make_cells(plan, name, device, plan.cells_of(name))
            else:
                make_column(plan, plan.column_of(name), device)


def plan_of(file: Path | str, *words: str, cores: int = 1) -> Plan:
    """The plan of a campaign, which is not written."""
    return make_plan(str(file), parsed(words), cores)


def planned(folder: Path, *words: str, name: str = "shapes") -> Plan:
    """The plan of a campaign, on disk."""
    with allow_users_files():
        plan = make_plan(str(folder / f"{name}.yaml"), parsed(words), 2)
    plan.place.path.mkdir(parents=True, exist_ok=True)
    plan.place.plan.write_bytes(plan_to_json(plan))
    return plan


def run(folder: Path, *words: str, name: str = "shapes") -> Path:
    """The report's folder of a campaign that was run in this process.

    Where `folder` is one with `finished`, only what the words change is computed.
    """
    plan = planned(folder, f"runs={folder / 'runs'}", *words, name=name)
    for job_name in plan.jobs:
        do(plan, job_name)
    return plan.place.report


def of_report(report: Path) -> FinishedCampaign:
    """The campaign that left a report's folder, from its record."""
    (place,) = (report.parent / "plans").iterdir()
    return record.read_record(PlanFolder(place))


def unfinished(finished: Path, runs: Path) -> Path:
    """A copy of a finished campaign as it was before its column `few`."""
    shutil.copytree(finished, runs)
    (place,) = runs.glob("shapes/plans/*")
    for job_name in ("column-few", REPORT):
        (place / job_states.DONE / job_name).unlink()
    (place / "record" / "column-few.json").unlink()
    shutil.rmtree(runs / "shapes" / REPORT)
    lost = [*runs.glob("store/cells/*-few-*"), *runs.glob("store/predictions/*-few-on-*")]
    assert len(lost) > 3
    for folder in lost:
        shutil.rmtree(folder)
    return runs


@contextlib.contextmanager
def started(folder: Path, *words: str, cwd: Path, **variables: str) -> Iterator[subprocess.Popen]:
    """`rib campaign` with what it prints, in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.cli", "campaign", str(folder / "shapes.yaml"), *words],
        cwd=cwd, env=grids.environment() | variables, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=heed_signals,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()  # its jobs follow it
        process.communicate()
