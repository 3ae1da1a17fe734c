"""Curves against a varied key, from made-up predictions, against sums in plain NumPy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import stores

from engine.measures import metrics, parts
from engine.measures.rows import PRE, Arm, Evaluation

N = 60
SETTINGS = ("dataset.shots=0", "dataset.shots=4", "dataset.shots=1")


def varied(folder: Path, settings=SETTINGS, methods=("fine_tune", "ewc")) -> list[Evaluation]:
    """A grid whose rows have these settings, each with predictions of its own."""
    rows: list[Evaluation] = []
    for number, setting in enumerate(settings):
        hits = stores.random_hits(N, number)
        for row in stores.grid(folder / str(number), hits, methods):
            if row.method != PRE:
                rows.append(replace(row, setting=setting))
            elif number == 0:
                rows.append(row)
    return rows


def test_points_are_in_order_and_hold_mri_and_downstream_accuracy(tmp_path: Path):
    evaluations = varied(tmp_path)
    grid = metrics.gather(evaluations)
    summary = metrics.summarise(grid, stores.SETS)
    points = parts.points(grid, summary.mri, "dataset.shots")
    shown = [(point.arm.method, point.value) for point in points]
    values = (1, 4, math.inf)
    assert shown == [(method, value) for method in ("fine_tune", "ewc") for value in values]
    accuracy = {row.cell: row.accuracy for row in grid.accuracy}
    for point in points:
        of_arm = [row for row in grid.accuracy if row.arm == point.arm]
        on_downstream = [row.accuracy for row in of_arm if row.downstream == row.evaluated_on]
        assert point.downstream == pytest.approx(np.mean(on_downstream)) and len(on_downstream) == 3
        assert point.mri in summary.mri
        changes = [
            row.accuracy
            - accuracy[replace(row.cell, method=PRE, variant="", setting="", downstream="")]
            for row in of_arm
            if row.evaluated_on in stores.SETS and row.evaluated_on != row.downstream
        ]
        assert point.mri.mri == pytest.approx(np.mean(changes))


def test_the_interval_of_downstream_accuracy_is_that_of_its_sources(tmp_path: Path):
    """The mean over three sets of the same 30 sources, two images each, restated by weights."""
    evaluations = varied(tmp_path, methods=("fine_tune",))
    grid = metrics.gather(evaluations)
    (first, *_) = parts.points(grid, metrics.summarise(grid, stores.SETS).mri, "dataset.shots")
    hits = []
    for row in evaluations:
        if row.arm == first.arm and row.on_downstream:
            data = pq.read_table(row.path)
            hits.append(data["top1"].to_numpy() == data["label"].to_numpy())
    by_source = np.mean(hits, axis=0).reshape(-1, 2).mean(axis=1)
    weights = np.random.default_rng(1).poisson(1, (20_000, len(by_source)))
    draws = 100 * (weights @ by_source) / weights.sum(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    assert first.downstream_ends[0] == pytest.approx(low, abs=1)
    assert first.downstream_ends[1] == pytest.approx(high, abs=1)


def test_a_setting_of_several_keys_is_a_curve_for_each_of_the_rest(tmp_path: Path):
    settings = [f"dataset.portion={p},train.epochs={e}" for e in (1, 3) for p in (1.0, 0.1)]
    grid = metrics.gather(varied(tmp_path, settings, ("fine_tune",)))
    mri = metrics.summarise(grid, stores.SETS).mri
    points = parts.points(grid, mri, "dataset.portion")
    assert [(point.rest, point.value) for point in points] == [
        ("train.epochs=1", 0.1),
        ("train.epochs=1", 1.0),
        ("train.epochs=3", 0.1),
        ("train.epochs=3", 1.0),
    ]
    assert parts.points(grid, mri, "dataset.shots") == ()


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("", "dataset.shots", None),
        ("step=4", "dataset.shots", None),
        ("dataset.shots=4", "dataset.shots", 4),
        ("dataset.shots=0", "dataset.shots", math.inf),
        ("optimizer.lr=0.1,dataset.portion=0.5", "dataset.portion", 0.5),
    ],
)
def test_the_value_of_a_key(setting, key, value):
    assert parts.value_of(Arm("m", "fine_tune", "", None, setting), key) == value


def test_accuracies_stay_within_0_and_100(tmp_path: Path):
    def hits(method: str, downstream: str, on: str) -> np.ndarray:
        return np.full(N, downstream == on)

    rows = [
        row if row.method == PRE else replace(row, setting="dataset.shots=1")
        for row in stores.grid(tmp_path, hits)
    ]
    grid = metrics.gather(rows)
    (point,) = parts.points(grid, metrics.summarise(grid, stores.SETS).mri, "dataset.shots")
    assert (point.downstream, *point.downstream_ends) == pytest.approx((100, 100, 100))
    assert max(point.downstream_ends) <= 100
