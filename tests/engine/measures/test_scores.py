"""Calibration error, scores of probabilities and accuracy by class, against their definitions."""

import numpy as np
import pytest

from engine.measures import scores
from engine.measures.predictions import ImagePredictions


def predictions_of(top1, label, p_top1, weights=None) -> ImagePredictions:
    weights, p = np.ones(len(top1)) if weights is None else weights, np.asarray(p_top1, np.float32)
    return ImagePredictions(np.asarray(top1), np.asarray(label), p, p, weights)


def test_calibration_error_of_many_images_is_its_definition():
    rng = np.random.default_rng(0)
    n = 200_000
    p = rng.random(n).astype(np.float32)
    predictions = predictions_of(rng.random(n) > p**2, np.zeros(n), p, rng.random(n) + 0.1)
    bins = np.ceil(p.astype(float) * 15).astype(int)
    gaps = [predictions.weights[bins == m] @ (p - predictions.hit)[bins == m] for m in range(16)]
    expected = 100 * np.abs(gaps).sum() / predictions.weights.sum()
    error = scores.calibration_error(predictions, np.arange(n))
    assert error == pytest.approx(expected, abs=0.05)


def test_calibration_error_of_the_sure_and_the_sincere():
    wrong = predictions_of([1] * 9, [0] * 9, [1.0] * 9)
    assert scores.calibration_error(wrong, np.arange(9)) == pytest.approx(100)
    assert scores.calibration_error(predictions_of([0], [0], [0.0]), np.arange(1)) == 100


@pytest.mark.parametrize("copies", [1, 5])
def test_few_images_do_not_make_a_model_look_badly_calibrated(copies):
    """The true error is 9.5 points; the bins' chance distances alone would add 3 or more. Copies of
    a source are no further evidence."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        p = np.repeat(rng.beta(2.2, 1.2, 160), copies)
        wrong = np.repeat(rng.random(160), copies) > np.clip(p - 0.1, 0, 1)
        predictions = predictions_of(wrong.astype(int), np.zeros(len(p)), p)
        errors.append(scores.calibration_error(predictions, np.arange(len(p)) // copies))
    assert np.mean(errors) == pytest.approx(9.95, abs=1.2)


def test_scores_of_probabilities_are_their_definitions():
    """Of a certain mistake too, whose probability is 0 in float32."""
    p_top1, p_true = np.array([[0.75, 0.75, 1], [0.75, 0.2, 0]], np.float32)
    right, label = np.array([0, 1, 1]), np.zeros(3, int)
    after = ImagePredictions(right, label, p_top1, p_true, np.ones(3))
    assert scores.top_label_brier(after).tolist() == pytest.approx([0.0625, 0.5625, 1])
    nll = scores.negative_log_likelihood(after)
    assert nll[:2].tolist() == pytest.approx([-np.log(0.75), -np.log(0.2)])
    assert nll[2] == pytest.approx(87.34, abs=0.01)


def test_macro_and_worst_class_accuracy_are_of_the_classes_that_are_there():
    rng = np.random.default_rng(0)
    label = rng.choice([0, 2, 3, 7], 90, p=[0.7, 0.1, 0.1, 0.1])
    top1 = np.where(rng.random(90) < 0.6, label, rng.integers(0, 9, 90))
    weights = rng.random(90)
    after = ImagePredictions(top1, label, *[np.ones(90, np.float32)] * 2, weights)
    accuracies = [
        np.average((top1 == label)[label == c], weights=weights[label == c]) for c in set(label)
    ]
    sources = np.arange(90)
    assert scores.macro_accuracy(after, sources) == pytest.approx(100 * np.mean(accuracies))
    assert scores.worst_class_accuracy(after, sources) == pytest.approx(100 * min(accuracies))
    assert scores.macro_accuracy(after, sources) != pytest.approx(100 * np.mean(top1 == label))
