"""Agreement and calibration error, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.measures import behaviour
from engine.measures.predictions import ImagePredictions


def predictions_of(top1, label, p_top1=None, weights=None) -> ImagePredictions:
    top1, label = np.asarray(top1), np.asarray(label)
    p_top1 = np.full(len(top1), 0.5) if p_top1 is None else np.asarray(p_top1)
    weights = np.ones(len(top1)) if weights is None else np.asarray(weights, float)
    return ImagePredictions(
        top1, label, p_top1.astype(np.float32), weights, 100 * float(np.mean(top1 == label))
    )


def test_agreement_by_hand():
    label = [0, 0, 0, 0, 0]
    before, after = predictions_of([0, 0, 1, 1, 2], label), predictions_of([0, 3, 0, 1, 1], label)
    assert behaviour.agreement(before, after) == (40, 20, 20, 20)
    weighted = predictions_of([0, 3, 0, 1, 1], label, weights=[2, 1, 1, 0.5, 0.5])
    assert behaviour.agreement(before, weighted) == pytest.approx((50, 40, 20, 20))


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_agreement_of_a_model_with_itself_and_turned_around(seed, n):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    first, second = (predictions_of(rng.integers(0, 3, n), label) for _ in range(2))
    same, right, lost, gained = behaviour.agreement(first, first)
    assert (same, lost, gained) == (100, 0, 0) and right == pytest.approx(first.accuracy)
    forth, back = behaviour.agreement(first, second), behaviour.agreement(second, first)
    assert (forth.lost, forth.gained) == (back.gained, back.lost)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60))
def test_calibration_error_is_its_definition(seed, n):
    rng = np.random.default_rng(seed)
    p = rng.random(n).astype(np.float32)
    predictions = predictions_of(rng.integers(0, 2, n), np.zeros(n), p, rng.random(n) + 0.1)
    expected = 0.0
    for m in range(15):
        inside = [i for i in range(n) if m / 15 < float(p[i]) <= (m + 1) / 15]
        weight = sum(predictions.weights[i] for i in inside)
        if inside:
            accuracy = (
                sum(predictions.weights[i] * (predictions.top1[i] == 0) for i in inside) / weight
            )
            confidence = sum(predictions.weights[i] * float(p[i]) for i in inside) / weight
            expected += weight / predictions.weights.sum() * abs(accuracy - confidence)
    assert behaviour.calibration_error(predictions) == pytest.approx(100 * expected, abs=1e-9)


def test_calibration_error_of_the_sure_and_the_sincere():
    wrong = predictions_of([1] * 9, [0] * 9, [1.0] * 9)
    assert behaviour.calibration_error(wrong) == 100
    sincere = predictions_of([0, 0, 0, 1], [0, 0, 0, 0], [0.75] * 4)
    assert behaviour.calibration_error(sincere) == 0
    assert behaviour.calibration_error(predictions_of([0], [0], [0.0])) == 100
