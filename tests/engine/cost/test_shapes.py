"""Which shape a campaign's jobs get, by the hours of their work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import campaigns
import pytest
from campaigns import METHODS, SETS

from engine.cost import estimate, shapes
from engine.cost.dry_run import PREPARE, Work
from engine.cost.estimate import Device, Estimate
from engine.grid import campaign, job_graph
from engine.store.pending import SLICE

folder = campaigns.folder
DEVICE = Device(tflops=1, fp32_tflops=1, mfu=1)
PLACES = ("upstream", *SETS)


@pytest.fixture(scope="module")
def counted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    runs = tmp_path_factory.mktemp("runs")
    return estimate.of(campaign.plan(str(folder / "shapes.yaml"), [f"runs={runs}"], 2))


def work(job: str, hours: float, row: str = "", evaluated_on: str = "") -> Work:
    return Work(job, "training", 1, hours * 3600e12, row=row, evaluated_on=evaluated_on)


@pytest.fixture
def long_column(counted: Estimate) -> Estimate:
    """`few` takes ten hours to train in each of two rows, and all models ten to see `outline`."""
    works = [work(PREPARE, 1)]
    works += [work("few", 10, row) for row in ("fine_tune", "linear_probe")]
    works += [work(name, 1, "fine_tune") for name in ("outline", "tinted")]
    works += [work(name, 4, evaluated_on="outline") for name in SETS]
    images = dict.fromkeys(PLACES, 10 * SLICE)
    return dataclasses.replace(counted, work=tuple(works), images=images)


def test_all_work_of_a_campaign_belongs_to_one_job_of_either_shape(counted: Estimate) -> None:
    total = DEVICE.hours(counted.work)
    assert {w.row for w in counted.work} == {"", *METHODS[:2]}
    assert {w.evaluated_on for w in counted.work} == {"", *PLACES}
    parts = job_graph.split(counted.plan, ["few"], {"outline": 3})
    for graph in (job_graph.columns(counted.plan), job_graph.split(counted.plan), parts):
        assert sum(counted.hours_of(job, DEVICE) for job in graph) == pytest.approx(total)
        assert shapes.hours([counted], [graph], DEVICE, 1) == pytest.approx(total)


def test_a_long_column_and_a_long_set_are_cut(long_column: Estimate) -> None:
    by_columns = shapes.columns([long_column])
    assert shapes.hours([long_column], by_columns, DEVICE, 4) == 1 + 20 + 4
    (graph,) = shapes.split([long_column], DEVICE, 4)
    names = [job.name for job in graph]
    assert "train-few.fine_tune" in names and "train-outline.fine_tune" not in names
    assert "evaluate-outline.8of8" in names, "two parts for each GPU"
    assert shapes.hours([long_column], [graph], DEVICE, 4) == 1 + 10 + 3
    assert shapes.best([long_column], DEVICE, 4)[0] == "split"


def test_a_single_gpu_has_nothing_to_split(long_column: Estimate) -> None:
    (graph,) = shapes.split([long_column], DEVICE, 1)
    assert not [job.name for job in graph if "." in job.name]
    assert shapes.best([long_column], DEVICE, 1)[0] == "columns"


def test_a_share_has_a_slice_at_least(long_column: Estimate) -> None:
    (graph,) = shapes.split([long_column], DEVICE, 64)
    shares = [job for job in graph if job.share]
    assert len(shares) == 10 and shares[0].name == "evaluate-outline.1of10"


def test_a_sample_is_evaluated_by_one_job(long_column: Estimate) -> None:
    sampled = dataclasses.replace(long_column.recipe.evaluate, budget=0.5)
    recipe = dataclasses.replace(long_column.recipe, evaluate=sampled)
    (graph,) = shapes.split([dataclasses.replace(long_column, recipe=recipe)], DEVICE, 4)
    assert not any(job.share for job in graph)


def test_the_grids_of_two_models_share_the_gpus(long_column: Estimate) -> None:
    columns = [long_column, long_column]
    graphs = shapes.columns(columns)
    assert shapes.hours(columns, graphs, DEVICE, 1) == 2 * (1 + 20 + 2 + 12)
    assert shapes.hours(columns, graphs, DEVICE, 8) == 25, "as long as one of them"
    levels = shapes.levels(columns, graphs, DEVICE)
    assert levels[0] == levels[1]
    assert levels[0]["prepare"] == 25 and levels[0]["column-few"] == 24


def test_the_split_must_be_worth_its_processes() -> None:
    assert shapes.faster(10, 7.9) == "split"
    assert shapes.faster(10, 8.1) == shapes.faster(0, 0) == "columns"
