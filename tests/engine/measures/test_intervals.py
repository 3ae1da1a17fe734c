"""Intervals of agreement, calibration, effective robustness and forgetting, by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from stores import SETS, cell, grid, several_seeds, table

from engine.commands import outcome
from engine.measures import (
    behaviour,
    bootstrap,
    effective_robustness,
    intervals,
    metrics,
    predictions,
)
from engine.measures.model_rows import ModelRows
from engine.measures.predictions import ImagePredictions
from engine.measures.rows import PRE, Agreement, Arm, Evaluation

BINNED = 60
NAMES = (*Agreement._fields, "calibration_error", "effective_robustness")


def lively(path, rng, n=BINNED, right=0.5) -> None:
    """Answers of all kinds: wrong in different ways, confidences in all bins."""
    label = np.arange(n) % 5
    top1 = np.where(rng.random(n) < right, label, rng.integers(0, 5, n))
    pq.write_table(table(np.zeros(n), top1=top1, p_top1=rng.random(n).astype(np.float32)), path)


def written_grid(folder, methods=("fine_tune", "lwf"), seeds=(0,)) -> list[Evaluation]:
    cells = several_seeds(folder, lambda seed: lambda *_: np.zeros(BINNED), seeds, methods=methods)
    rng = np.random.default_rng(0)
    for evaluation in cells:
        lively(evaluation.path, rng, right=rng.uniform(0.3, 0.7))
    return cells


def resampled(path, counts: np.ndarray) -> ImagePredictions:
    """Predictions on the images of a draw of sources, each as often as it was drawn."""
    read = predictions.read(path)
    images = np.repeat(np.arange(len(read)), np.repeat(counts, 2))  # two images a source
    top1, label, p = (read[name].to_numpy()[images] for name in ("top1", "label", "p_top1"))
    return ImagePredictions(
        top1, label, p, np.ones(len(images)), 100 * float(np.mean(top1 == label))
    )


def brute_force(cells, read, count):
    """Every number of every draw, one draw and one cell at a time, from the images themselves."""
    draws = bootstrap.draw(read.predictions, resamples=count, seeds=len(read.seeds), seed=0)
    order = np.searchsorted(
        read.predictions["a"].sources, [f"concept-{k}" for k in range(BINNED // 2)]
    )  # as the images stand
    samples: dict = {}
    for b in range(count):
        predictions_of = {c: resampled(c.path, draws.counts[b][order]) for c in cells}
        before = {c.evaluated_on: s for c, s in predictions_of.items() if c.method == PRE}
        values_of: dict = {}
        for c, s in predictions_of.items():
            values_of.setdefault(("accuracy", c.cell), []).append(s.accuracy)
            error = behaviour.calibration_error(s)
            values_of.setdefault(("calibration_error", c.cell), []).append(error)
            if c.method != PRE:
                same = behaviour.agreement(before[c.evaluated_on], s)
                for name, value in zip(Agreement._fields, same, strict=True):
                    values_of.setdefault((name, c.cell), []).append(value)
        for key, values in values_of.items():
            weights = draws.weights[b] if len(values) > 1 else np.ones(1)
            samples.setdefault(key, []).append(float(weights @ values))
        accuracy = {
            c: samples["accuracy", c][-1] for _, c in values_of if ("accuracy", c) in values_of
        }
        for name in SETS:
            on = [c for c in accuracy if c.evaluated_on == name != c.downstream]
            upstream = np.array([[accuracy[replace(c, evaluated_on="up")] for c in on]])
            shifted = np.array([[accuracy[c] for c in on]])
            line = effective_robustness.Line.fit(upstream, shifted)
            (robustness,) = shifted - line.accuracy(upstream)
            for c, value in zip(on, robustness, strict=True):
                samples.setdefault(("effective_robustness", c), []).append(value)
        for c in accuracy:
            if c.evaluated_on == "up" and c.method != PRE:
                start = accuracy[replace(c, method=PRE, variant="", downstream="")]
                samples.setdefault(("change", c), []).append(accuracy[c] - start)
    return {key: np.array(values) for key, values in samples.items()}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_every_number_is_what_brute_force_gives_on_the_same_draws(tmp_path, seeds):
    cells = written_grid(tmp_path, seeds=seeds)
    read = metrics.gather(cells)
    trends = effective_robustness.trends([row.cell for row in read.accuracy], SETS, "up")
    rows = effective_robustness.above_trend(read.behaviour, read.accuracy, trends, "up")
    summary = metrics.summarise(read, SETS)
    interval_rows = intervals.intervals(
        read, summary, rows, SETS, "up", trends=trends, resamples=80
    )
    samples = brute_force(cells, read, 80)
    shares = (*Agreement._fields, "accuracy")
    compared = set()
    for row in interval_rows:
        key = row.quantity, row.cell
        if row.evaluated_on and row.downstream != row.evaluated_on and key in samples:
            low, high, _ = bootstrap.ends(samples[key])
            if row.quantity in shares:
                low, high = np.clip((low, high), 0, 100)
            assert (row.low, row.high) == pytest.approx((low, high), abs=1e-4), row
            compared.add(key)
    on_downstream = {c.cell for c in cells if c.on_downstream}
    assert compared == {key for key in samples if key[1] not in on_downstream}

    fine_tune = Arm("lite0", "fine_tune", "canonical", None)
    over = [row for row in interval_rows if row.arm == fine_tune and not row.downstream]
    for row in over:  # the mean on a set over the models that were not trained on it
        if row.evaluated_on and row.quantity != "change":
            assert row.quantity in NAMES
            cells_on = {c.cell for c in cells if c.arm == fine_tune and not c.on_downstream
                        and c.evaluated_on == row.evaluated_on}  # fmt: skip
            assert len(cells_on) == 2 + (row.evaluated_on == "up")
            expected = np.mean([samples[row.quantity, c] for c in cells_on], axis=0)
            low, high, _ = bootstrap.ends(expected)
            if row.quantity in shares:
                low, high = np.clip((low, high), 0, 100)
            assert (row.low, row.high) == pytest.approx((low, high), abs=1e-4)
    on_sets = {(row.quantity, row.evaluated_on) for row in over if row.evaluated_on in SETS}
    assert on_sets == {(name, on) for name in NAMES for on in SETS}
    means = {row.quantity: row for row in over if row.evaluated_on == ""}
    means |= {row.quantity: row for row in over if row.quantity == "change"}
    for name in NAMES:
        cells_of_arm = [
            c.cell
            for c in cells
            if c.arm == fine_tune and c.evaluated_on in SETS and not c.on_downstream and c.seed == 0
        ]
        assert len(cells_of_arm) == 6
        low, high, _ = bootstrap.ends(np.mean([samples[name, c] for c in cells_of_arm], axis=0))
        if name in shares:
            low, high = np.clip((low, high), 0, 100)
        assert (means[name].low, means[name].high) == pytest.approx((low, high), abs=1e-4)
        values = {row.cell: getattr(row, name) for row in rows}
        assert means[name].value == pytest.approx(np.mean([values[c] for c in cells_of_arm]))
    assert means["change"].evaluated_on == "up"
    changes = [samples["change", c.cell] for c in cells if c.arm == fine_tune and c.seed == 0
           and c.evaluated_on == "up"]  # fmt: skip
    expected = bootstrap.ends(np.mean(changes, axis=0))[:2]
    assert (means["change"].low, means["change"].high) == pytest.approx(expected, abs=1e-4)


def test_a_line_over_given_models_is_the_same_in_every_draw(tmp_path):
    read = metrics.gather(written_grid(tmp_path))
    accuracy = {
        "m": {"up": 30.0, "a": 20.0},
        "n": {"up": 50.0, "a": 45.0},
        "o": {"up": 90, "a": 70.0},
    }
    models = ModelRows("models.csv", "up", accuracy)
    trends = effective_robustness.trends([row.cell for row in read.accuracy], SETS, "up", models)
    rows = effective_robustness.above_trend(read.behaviour, read.accuracy, trends, "up")
    summary = metrics.summarise(read, SETS)
    interval_rows = intervals.intervals(
        read, summary, rows, SETS, "up", trends=trends, resamples=400
    )
    ends = {(row.quantity, row.cell): (row.low, row.high) for row in interval_rows}
    draws = bootstrap.draw(read.predictions, resamples=400, seeds=1, seed=0).first(256)
    line = effective_robustness.Line.fit(*models.points("a")[:, None])
    for cell_on_a in trends["a"].cells:
        key = (cell_on_a.arm, cell_on_a.downstream)
        up, a = (
            100 * draws.mean(on, read.predictions[on].correct[key][0][:, None])
            for on in ("up", "a")
        )
        samples = (a - line.accuracy(up))[:, 0]
        expected = bootstrap.ends(samples)[:2]
        assert ends["effective_robustness", cell_on_a] == pytest.approx(expected, abs=1e-4)


def test_models_trained_upstream_are_drawn_with_their_accuracy_there(tmp_path):
    """A set has the upstream set's sources and hits, so no draw can put a model off the line. A
    further set has sources of its own, which change what a sampler of all sets draws."""
    hits = np.random.default_rng(0).random((4, BINNED)) < np.array([[0.3], [0.5], [0.7], [0.6]])
    cells = []
    for k, method in enumerate((PRE, "fine_tune", "lwf", "ewc")):
        for on in ("a", "b", "up"):
            path = tmp_path / f"{method}-{on}.parquet"
            apart = {"source": [f"another-{i}" for i in range(BINNED)]} if on == "b" else {}
            pq.write_table(table(hits[k], **apart), path)
            cells.append(cell(path, method, "" if method == PRE else "up", on))
    read = metrics.gather(cells)
    assert read.downstream_predictions.keys() == {"up"}
    trends = effective_robustness.trends([row.cell for row in read.accuracy], ["a"], "up")
    rows = effective_robustness.above_trend(read.behaviour, read.accuracy, trends, "up")
    summary = metrics.Summary(read.accuracy, ())
    interval_rows = intervals.intervals(read, summary, rows, ["a"], "up", trends=trends)
    robustness = [row for row in interval_rows if row.quantity == "effective_robustness"]
    assert len(robustness) >= 4
    for row in robustness:
        assert (row.value, row.low, row.high) == pytest.approx((0, 0, 0), abs=1e-3)


def test_what_both_models_say_alike_has_no_width(tmp_path):
    rng = np.random.default_rng(1)
    hits = rng.random(BINNED) < 0.5
    read = metrics.gather(grid(tmp_path, lambda *_: hits))
    trends = effective_robustness.trends([row.cell for row in read.accuracy], SETS, "up")
    rows = effective_robustness.above_trend(read.behaviour, read.accuracy, trends, "up")
    interval_rows = intervals.intervals(
        read, metrics.summarise(read, SETS), rows, SETS, "up", trends=trends
    )
    ends = {
        (r.quantity, r.low, r.high) for r in interval_rows if r.quantity in ("same_top1", "lost")
    }
    assert ends == {("same_top1", 100, 100), ("lost", 0, 0)}
    assert {(r.low, r.high) for r in interval_rows if r.quantity == "change"} == {(0, 0)}
    assert not [
        row for row in interval_rows if row.quantity == "effective_robustness"
    ]  # no trend line


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say(tmp_path):
    """Two sources in three keep their answer; a confidence of 0.9 is right half of the time."""
    covered = {"same_top1": 0, "calibration_error": 0}
    truth = {"same_top1": 100 * 2 / 3, "calibration_error": 40.0}
    repeats = 120
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        n, cells, start = 100, [], {}
        label = np.arange(n) % 5
        for number, (method, downstream, on) in enumerate(
            [(PRE, "", "a"), (PRE, "", "b"), ("fine_tune", "a", "b"), ("fine_tune", "b", "a")]
        ):
            path = tmp_path / f"{repeat}-{number}.parquet"
            right = np.repeat(rng.random(n // 2) < 0.5, 2)
            top1 = np.where(right, label, (label + 1) % 5)
            if method == PRE:
                start[on] = top1
            else:
                unchanged = np.repeat(rng.random(n // 2) < 2 / 3, 2)
                swapped = np.where(start[on] == label, (label + 1) % 5, label)
                top1 = np.where(unchanged, start[on], swapped)
            confident = np.full(n, 0.9, np.float32)
            pq.write_table(table(np.zeros(n), top1=top1, p_top1=confident), path)
            cells.append(cell(path, method, downstream, on))
        read = metrics.gather(cells)
        drawn = intervals._draws(read, {"a": read.predictions["a"]}, 300, 0)
        for name in covered:
            (samples,) = [v for (what, c), v in drawn.items() if what == name and c.method != PRE]
            low, high, _ = bootstrap.ends(samples)
            covered[name] += low <= truth[name] <= high
    assert all(0.87 <= count / repeats <= 0.995 for count in covered.values()), covered


def test_the_end_of_a_launch_has_joint_draws_of_the_changes(tmp_path):
    """By brute force: sources of all sets drawn together, images of each taken in plain loops."""
    rng = np.random.default_rng(3)
    hits = {(name, when): rng.random(BINNED) < 0.5 for name in "ab" for when in ("pre", "post")}
    banks: dict = {}
    for name in "ab":
        banks[name] = predictions.SetPredictions()
        for key, when in (("before", "pre"), ("after", "post")):
            path = tmp_path / f"{name}{when}.parquet"
            pq.write_table(table(hits[name, when]), path)
            banks[name].add(key, path)
    draws = outcome.change_draws(banks)
    assert {len(samples) for samples in draws.values()} == {metrics.MOST}  # of 30 sources
    expected: dict = {name: [] for name in "ab"}
    for _ in range(4000):
        concepts = rng.integers(BINNED // 2, size=BINNED // 2)
        images = np.concatenate([2 * concepts, 2 * concepts + 1])
        for name in "ab":
            post, pre = (hits[name, when][images] for when in ("post", "pre"))
            expected[name].append(100 * (post.mean() - pre.mean()))
    for name in "ab":
        assert np.std(draws[name]) == pytest.approx(np.std(expected[name]), rel=0.1)
    together, apart = (np.mean([v["a"], v["b"]], axis=0) for v in (draws, expected))
    assert bootstrap.ends(together).half_width == pytest.approx(
        bootstrap.ends(apart).half_width, rel=0.15
    )
    assert np.std(together) == pytest.approx(np.std(apart), rel=0.1)
