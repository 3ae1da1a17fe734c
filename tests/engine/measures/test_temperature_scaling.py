"""Temperature scaling from logits, against plain twins."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import optimize, special

from engine.evaluation.reduction import Reduction, predictions_table
from engine.measures import scores
from engine.measures.predictions import SetPredictions
from engine.measures.temperature_scaling import Temperature, temperature_of

MASK = np.array([True, True, False, True, True, True, False, True])
CLASSES = np.flatnonzero(MASK)


def drawn(images: int, over: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 8] whose best temperature is `over`, but for chance, and labels [N]."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, len(MASK))) * 2
    p = special.softmax(np.where(MASK, logits, -np.inf), axis=1)
    labels = np.array([rng.choice(len(MASK), p=row) for row in p])
    return logits * over, labels


def stored(folder: Path, name: str, logits: np.ndarray, labels: np.ndarray) -> Path:
    """The file that an evaluation leaves."""
    positions = np.arange(len(labels))
    pack = SimpleNamespace(sources=np.char.mod("image %d", positions))
    truth, mask = torch.from_numpy(labels), torch.from_numpy(MASK)
    labelled = SimpleNamespace(
        labels=truth,
        mask=mask,
        members=None,
        group=None,
        columns={},
        pack=pack,
        class_reduction="max",
    )
    reduce = Reduction(labelled, torch.device("cpu"), calibration=True)
    reduced = reduce(positions, [torch.from_numpy(logits).float()])
    path = folder / f"{name}.parquet"
    pq.write_table(predictions_table(reduced, labelled, positions), path)
    return path


def softmax(logits: np.ndarray) -> np.ndarray:
    """Plain float64 probabilities, over the possible classes."""
    return special.softmax(logits[:, MASK], axis=1)


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """By SciPy, from all logits."""
    places = np.searchsorted(CLASSES, labels)[:, None]

    def nll(log_t: float) -> float:
        z = special.log_softmax(logits[:, MASK] / np.exp(log_t), axis=1)
        return -float(np.take_along_axis(z, places, axis=1).mean())

    least = optimize.minimize_scalar(nll, bounds=(-3, 4), method="bounded")
    return float(np.exp(least.x))


@pytest.mark.parametrize("over", [0.4, 1.0, 1.9, 6.0])
def test_the_temperature_and_its_confidences_are_those_of_all_logits(tmp_path, over):
    logits, labels = drawn(600, over)
    expected = best_temperature(logits, labels)
    path = stored(tmp_path, "held out", logits, labels)
    fitted = temperature_of([path])
    assert not fitted.is_at_end
    assert fitted.value == pytest.approx(expected, rel=0.01)
    other, truth = drawn(500, over, seed=1)
    after = SetPredictions().add(stored(tmp_path, "judged", other, truth), scale=fitted.confidence)
    confidence = softmax(other / fitted.value).max(axis=1)
    np.testing.assert_allclose(after.scaled, confidence, rtol=2e-3)
    # The same sum of distances with the twin's confidences, but for images at a bin's edge.
    twin = after._replace(p_top1=softmax(other / expected).max(axis=1))
    sources = np.arange(len(truth))
    error = scores.scaled_calibration_error(after, sources)
    assert error == pytest.approx(scores.calibration_error(twin, sources), abs=0.5)
    if over in (0.4, 6.0):
        assert abs(error) < abs(scores.calibration_error(after, sources)) / 2


@pytest.mark.parametrize(("labels_are", "end"), [("answers", 0.25), ("others", 16.0)])
def test_a_temperature_at_the_end_of_its_range_is_said(tmp_path, caplog, labels_are, end):
    logits, _ = drawn(60, 3.0)
    answers = np.where(MASK, logits, -np.inf).argmax(axis=1)
    labels = answers if labels_are == "answers" else CLASSES[np.searchsorted(CLASSES, answers) - 1]
    path = stored(tmp_path, "a", logits, labels)
    with caplog.at_level(logging.WARNING):
        fitted = temperature_of([path])
    assert fitted.is_at_end and fitted.value == end
    assert f"a.parquet: the temperature is at the end of its range, {end:g}" in caplog.text
    after = SetPredictions().add(path, scale=fitted.confidence)
    np.testing.assert_allclose(after.scaled, softmax(logits / end).max(axis=1), rtol=1e-5)


def test_what_is_not_stored_has_no_error(tmp_path):
    path = stored(tmp_path, "a", *drawn(20, 1.0))
    pq.write_table(pq.read_table(path).drop_columns(["p_top1_scaled"]), path)
    assert temperature_of([path]) is None
    after = SetPredictions().add(path, scale=Temperature(3).confidence)
    assert np.isnan(scores.scaled_calibration_error(after, np.arange(20)))
