"""Agreement, calibration error and effective robustness, against definitions and NumPy's fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import SETS, grid, random_hits

from engine.measures import behaviour, metrics
from engine.measures.predictions import ImagePredictions


def seen(top1, label, p_top1=None, weights=None) -> ImagePredictions:
    top1, label = np.asarray(top1), np.asarray(label)
    p_top1 = np.full(len(top1), 0.5) if p_top1 is None else np.asarray(p_top1)
    weights = np.ones(len(top1)) if weights is None else np.asarray(weights, float)
    return ImagePredictions(
        top1, label, p_top1.astype(np.float32), weights, 100 * float(np.mean(top1 == label))
    )


def test_agreement_by_hand():
    label = [0, 0, 0, 0, 0]
    before, after = seen([0, 0, 1, 1, 2], label), seen([0, 3, 0, 1, 1], label)
    assert behaviour.agreement(before, after) == (40, 20, 20, 20)
    weighted = seen([0, 3, 0, 1, 1], label, weights=[2, 1, 1, 0.5, 0.5])
    assert behaviour.agreement(before, weighted) == pytest.approx((50, 40, 20, 20))


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_agreement_of_a_model_with_itself_and_turned_around(seed, n):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    one, other = (seen(rng.integers(0, 3, n), label) for _ in range(2))
    same, right, lost, gained = behaviour.agreement(one, one)
    assert (same, lost, gained) == (100, 0, 0) and right == pytest.approx(one.accuracy)
    there, back = behaviour.agreement(one, other), behaviour.agreement(other, one)
    assert (there.lost, there.gained) == (back.gained, back.lost)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60))
def test_calibration_error_is_its_definition(seed, n):
    rng = np.random.default_rng(seed)
    p = rng.random(n).astype(np.float32)
    one = seen(rng.integers(0, 2, n), np.zeros(n), p, rng.random(n) + 0.1)
    expected = 0.0
    for m in range(15):
        inside = [i for i in range(n) if m / 15 < float(p[i]) <= (m + 1) / 15]
        weight = sum(one.weights[i] for i in inside)
        if inside:
            accuracy = sum(one.weights[i] * (one.top1[i] == 0) for i in inside) / weight
            confidence = sum(one.weights[i] * float(p[i]) for i in inside) / weight
            expected += weight / one.weights.sum() * abs(accuracy - confidence)
    assert behaviour.calibration_error(one) == pytest.approx(100 * expected, abs=1e-9)


def test_calibration_error_of_the_sure_and_the_sincere():
    wrong = seen([1] * 9, [0] * 9, [1.0] * 9)
    assert behaviour.calibration_error(wrong) == 100
    sincere = seen([0, 0, 0, 1], [0, 0, 0, 0], [0.75] * 4)
    assert behaviour.calibration_error(sincere) == 0
    assert behaviour.calibration_error(seen([0], [0], [0.0])) == 100


def logistic(x):
    return 100 / (1 + np.exp(-np.asarray(x)))


def robustness(upstream, shifted, fit=None) -> np.ndarray:
    in_fit = np.array([True] * len(upstream) if fit is None else fit)
    return behaviour.effective_robustness(np.array([upstream]), np.array([shifted]), in_fit)[0]


def test_effective_robustness_is_the_height_above_the_line():
    x = np.array([-1.0, 0.2, 0.9, 2.0])
    shifted = logistic(0.8 * x - 0.5)
    np.testing.assert_allclose(robustness(logistic(x), shifted), 0, atol=1e-9)
    raised = np.append(shifted, logistic(0.8 * 1.5 - 0.5) + 7)
    fit = [True] * 4 + [False]
    found = robustness(logistic(np.append(x, 1.5)), raised, fit)
    np.testing.assert_allclose(found, [0, 0, 0, 0, 7], atol=1e-9)


def test_effective_robustness_is_numpys_fit():
    rng = np.random.default_rng(0)
    upstream, shifted = rng.uniform(20, 90, (2, 12))
    x, y = (np.log(value / (100 - value)) for value in (upstream, shifted))
    slope, level = np.polyfit(x, y, 1)
    expected = shifted - logistic(slope * x + level)
    found = robustness(upstream, shifted)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_accuracies_of_0_and_100_have_an_effective_robustness():
    found = robustness([0, 50, 100], [0, 50, 100])
    np.testing.assert_allclose(found, 0, atol=0.02)


def test_models_of_the_same_upstream_accuracy_have_no_trend_line():
    assert np.isnan(robustness([70, 70, 70], [10, 20, 30])).all()
    assert np.isnan(robustness([70, 70, 90], [10, 20, 30], [True, True, False])).all()


def test_above_trend_uses_models_trained_elsewhere_and_no_interpolation(tmp_path):
    read = metrics.gather(grid(tmp_path, random_hits(), ("fine_tune", "lwf")))
    known = {row.cell: row.accuracy for row in read.accuracy}
    found = behaviour.above_trend(read.behaviour, read.accuracy, SETS, "up")
    for row in found:
        elsewhere = row.evaluated_on in SETS and not row.on_downstream
        assert (row.effective_robustness is not None) == elsewhere
    on_a = [row for row in found if row.evaluated_on == "a" and not row.on_downstream]
    assert len(on_a) == 5
    x, y = ([known[replace(row.cell, evaluated_on=on)] for row in on_a] for on in ("up", "a"))
    expected = robustness(x, y)
    assert [row.effective_robustness for row in on_a] == pytest.approx(list(expected))


def test_interpolations_do_not_bend_the_line_and_few_models_have_none(tmp_path):
    read = metrics.gather(grid(tmp_path, random_hits(), ("fine_tune", "lwf")))
    accuracy = [replace(row, alpha=0.5) if row.method == "lwf" else row for row in read.accuracy]
    rows = [row for row in read.behaviour if row.method != "lwf"]
    kept = [row for row in read.accuracy if row.method != "lwf"]
    bent = behaviour.above_trend(rows, accuracy, SETS, "up")
    assert bent == behaviour.above_trend(rows, kept, SETS, "up")
    two = [row for row in kept if row.downstream in ("", "a")]
    none = behaviour.above_trend(rows, two, SETS, "up")
    assert all(row.effective_robustness is None for row in none)


def test_settings_are_measured_against_the_line_of_the_plain_grid(tmp_path):
    read = metrics.gather(grid(tmp_path, random_hits(), ("fine_tune", "lwf")))

    def above(accuracy):
        rows = [row for row in read.behaviour if row.method != "lwf"]
        return behaviour.above_trend(rows, accuracy, SETS, "up")

    alone = [row for row in read.accuracy if row.method != "lwf"]
    lwf = [replace(row, setting="step=1") for row in read.accuracy if row.method == "lwf"]
    assert above([*alone, *lwf]) == above(alone)
    (snapshot,) = behaviour.above_trend(
        [replace(row, setting="step=1") for row in read.behaviour if row.method == "lwf"][1:2],
        [*alone, *lwf],
        SETS,
        "up",
    )
    assert snapshot.effective_robustness is not None

    def in_a_setting(rows):
        return [row if row.method == "pre" else replace(row, setting="x=1") for row in rows]

    varied = behaviour.above_trend(
        in_a_setting(read.behaviour), in_a_setting(read.accuracy), SETS, "up"
    )
    plain = behaviour.above_trend(read.behaviour, read.accuracy, SETS, "up")
    robustness = [[row.effective_robustness for row in rows] for rows in (varied, plain)]
    assert robustness[0] == robustness[1]


@pytest.mark.parametrize("best", [100.0, 99.995])
def test_models_that_are_all_perfect_upstream_have_no_trend(tmp_path, best):
    """Accuracies above 99.99% differ, and their logits do not."""
    read = metrics.gather(grid(tmp_path, random_hits(), ("fine_tune", "lwf")))
    accuracy = [
        replace(row, accuracy=best + k * 1e-4 * (best < 100)) if row.evaluated_on == "up" else row
        for k, row in enumerate(read.accuracy)
    ]
    found = behaviour.above_trend(read.behaviour, accuracy, SETS, "up")
    assert all(row.effective_robustness is None for row in found)


def test_three_pre_trained_models_make_the_line_alone(tmp_path):
    rows, accuracy = [], []
    for k, model in enumerate(("m0", "m1", "m2")):
        read = metrics.gather(grid(tmp_path / model, random_hits(seed=k)))
        rows += [replace(row, model=model) for row in read.behaviour]
        accuracy += [replace(row, model=model) for row in read.accuracy]
    found = {row.cell: row for row in behaviour.above_trend(rows, accuracy, SETS, "up")}
    before = [row for row in found.values() if row.method == "pre" and row.evaluated_on == "b"]
    known = {row.cell: row.accuracy for row in accuracy}
    x = [known[replace(row.cell, evaluated_on="up")] for row in before]
    expected = robustness(x, [known[row.cell] for row in before])
    assert [row.effective_robustness for row in before] == pytest.approx(list(expected))
