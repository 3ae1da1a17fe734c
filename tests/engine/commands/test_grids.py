"""The jobs and sites that the words of `rib campaign` give to plans."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import campaigns
import pytest
import torch
from campaigns import SETS

from engine.commands.grids import grids_of
from engine.cost import estimate
from engine.cost.dry_run import Work
from engine.cost.estimate import Estimate
from engine.grid import campaign, slurm
from engine.grid.campaign import Plan

folder = campaigns.folder
LONG = 1e19  # operations: hours on a GPU


def words(**options: object) -> argparse.Namespace:
    values = {"executor": "local", "profile": None, "shape": "auto", "cores": 8, "gpus_per_job": 1}
    of_slurm = {"partition": "", "account": "", "time": None, "mem": None, "retries": 2}
    return argparse.Namespace(**{**values, **of_slurm, "requeue": False, **options})


@pytest.fixture(scope="module")
def counted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    """A campaign for CPUs or GPUs, one column of which takes much longer than the rest."""
    runs = tmp_path_factory.mktemp("runs")
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={runs}", "device=auto"], 8)
    rows = ("fine_tune", "linear_probe")
    work = tuple(Work("few", "training", 1, LONG, row=row) for row in rows)
    return dataclasses.replace(estimate.of(plan), work=work)


@pytest.fixture
def plan(counted: Estimate, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(estimate, "of", lambda plan: counted)
    return counted.plan


def see_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("gpus", "per_job", "is_split"), [(0, 1, 0), (1, 1, 0), (2, 1, 1), (2, 2, 0)]
)
def test_several_gpus_split_what_ends_sooner_by_it(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, gpus: int, per_job: int, is_split: int
) -> None:
    see_gpus(monkeypatch, gpus)
    (grid,) = grids_of(words(gpus_per_job=per_job), [plan])
    names = [job.name for job in grid.jobs]
    assert ("train-few.fine_tune" in names, "column-few" in names) == (bool(is_split), not is_split)
    assert list(grid.site.resources) == names


def test_the_shape_can_be_chosen(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    (grid,) = grids_of(words(shape="split"), [plan])
    assert "evaluate-few" in [job.name for job in grid.jobs]
    see_gpus(monkeypatch, 8)
    (grid,) = grids_of(words(shape="columns"), [plan])
    assert [job.name for job in grid.jobs] == ["prepare", *(f"column-{n}" for n in SETS), "report"]


def test_what_most_depends_on_goes_first(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    (grid,) = grids_of(words(), [plan])
    seconds = LONG / (312e12 * 0.4)
    assert grid.priorities["train-few.fine_tune"] == pytest.approx(seconds, abs=1)
    assert grid.priorities["prepare"] == grid.priorities["train-few.fine_tune"]
    assert grid.priorities["train-outline"] == 0
    assert grid.plain()["prepare"]["priority"] == grid.priorities["prepare"]


def test_a_cluster_gets_a_time_limit_for_each_job(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = slurm.Cluster(has_gpus=True, accounting=True, remembers_s=300)
    monkeypatch.setattr(slurm, "cluster", lambda partition: cluster)
    grids = grids_of(words(executor="slurm"), [plan, plan])
    assert len(grids) == 2 and all(grid.site.on_slurm for grid in grids)
    few, outline = (
        grids[0].site.resources[f"train-{name}"] for name in ("few.fine_tune", "outline")
    )
    assert few.gpu == outline.gpu == 1 and few.runtime > outline.runtime == 30
