"""What jobs ask a cluster for, beside the estimate that it is derived from."""

from __future__ import annotations

from pathlib import Path

import campaigns
import pytest
from campaigns import SETS

from engine.cost import estimate, needs
from engine.cost.estimate import Device, Estimate
from engine.grid import campaign, job_graph, resources
from engine.grid.campaign import Plan

folder = campaigns.folder
COLUMNS = [f"column-{name}" for name in SETS]


@pytest.fixture(scope="module")
def plan(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    runs = tmp_path_factory.mktemp("runs")
    return campaign.plan(str(folder / "shapes.yaml"), [f"runs={runs}"], 2)


@pytest.fixture(scope="module")
def costs(plan: Plan) -> Estimate:
    return estimate.of(plan)


def test_only_what_computes_asks_for_gpus(plan: Plan, costs: Estimate) -> None:
    jobs = needs.of(costs, job_graph.columns(plan), "cuda", cores=3, gpus=2)
    assert list(jobs) == ["prepare", *COLUMNS, "report"]
    gpus = {name: job.gpu for name, job in jobs.items()}
    assert gpus == {"prepare": 1, **dict.fromkeys(COLUMNS, 2), "report": 0}
    assert {job.threads for job in jobs.values()} == {3}
    assert {
        job.gpu for job in needs.of(costs, job_graph.columns(plan), "cpu", cores=3, gpus=2).values()
    } == {0}


def test_time_is_three_times_the_prediction_and_half_an_hour(
    plan: Plan, costs: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = {"few": 1.0, "outline": 4.0, "tinted": 0.0, "prepare": 2.0}
    monkeypatch.setattr(
        Estimate, "hours_of", lambda self, job, device: hours[job.column or job.stage]
    )
    jobs = needs.of(costs, job_graph.columns(plan), "cuda", cores=1, gpus=2)
    assert [jobs[f"column-{name}"].runtime for name in ("few", "outline", "tinted")] == [
        120,
        390,
        30,
    ]
    images = sum(costs.images.values())  # `prepare` encodes them on its core, on a single GPU
    assert jobs["prepare"].runtime == pytest.approx(30 + 3 * 120 + 3 * images * 0.02 / 60, abs=1)


def test_a_core_is_slower_than_a_gpu(plan: Plan, costs: Estimate) -> None:
    """By the peaks themselves: bf16 at 40% of 312 TFLOP/s, and 20 GFLOP/s a core."""
    work = [work for work in costs.work if work.job == "few" and work.precision == "bf16"]
    assert not work, "device=cpu computes in fp32"
    flops = sum(work.flops for work in costs.work if work.job == "few")
    few = next(job for job in job_graph.columns(plan) if job.column == "few")
    assert costs.hours_of(few, needs.CORE) == pytest.approx(flops / 20e9 / 3600)
    assert costs.hours_of(few, Device()) < costs.hours_of(few, needs.CORE)


def test_the_users_hours_and_memory_are_every_jobs(plan: Plan, costs: Estimate) -> None:
    jobs = needs.of(costs, job_graph.columns(plan), "cpu", cores=1, hours=1.51, gigabytes=12.5)
    assert {(job.runtime, job.mem_mb) for job in jobs.values()} == {(91, 12500)}


def test_memory_holds_the_models_and_the_largest_set(plan: Plan, costs: Estimate) -> None:
    (memory,) = {
        job.mem_mb for job in needs.of(costs, job_graph.columns(plan), "cpu", cores=1).values()
    }
    pixels = max(costs.images.values()) * 3 * 32 * 32
    models = (4 + 3) * 4 * costs.parameters
    assert memory == pytest.approx(3000 + (models + pixels) / 1e6, abs=2)


def test_text_names_only_what_is_requested() -> None:
    assert resources.Resources(1).text() == "1 core"
    assert resources.Resources(4, 1, 12000, 95).text() == "1 GPU, 4 cores, 12.0 GB, 95 min"
    assert resources.Resources(2, 8).plain() == {"threads": 2, "gpu": 8}
