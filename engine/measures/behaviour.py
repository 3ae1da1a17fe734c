"""The measures of a model on a set: what is computed of its predictions.

A measure is a function and an entry here, which is its column in `Grid.cells`. Its draws, its
intervals, its means over sets, its place in the files and on the page follow from that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy import special

from engine.measures.predictions import ImagePredictions

BINS = 15  # of confidences


def calibration_error(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """Expected calibration error in points: the mean distance between confidence, the probability
    of the top-1 class, and accuracy, in 15 bins of equal width, open below and closed above (Guo et
    al. 2017, equation 3).

    The distance in a bin is above 0 by chance alone, so it is debiased (as Kumar et al. 2019,
    section 4.2): each bin's sum is taken to be normal, with its variance over `sources` (int
    [images]: the images of a source are not independent), and what the absolute value of such a
    number is too large by is subtracted. The result may be below 0. It has no interval: in
    simulated campaigns of known truth none that was tried held it as often as it said.
    """
    gaps = predictions.weights * (predictions.p_top1.astype(np.float64) - predictions.hit)
    edges = np.ceil(predictions.p_top1.astype(np.float64) * BINS).astype(int)
    places = sources * BINS + np.clip(edges - 1, 0, BINS - 1)
    count = int(sources.max()) + 1
    by_source = np.bincount(places, gaps, count * BINS).reshape(count, BINS)
    sums = by_source.sum(axis=0)
    variance = np.maximum((by_source**2).sum(axis=0) - sums**2 / count, 0)
    too_large = _folded_normal(sums, np.sqrt(variance)) - np.abs(sums)
    return float(100 * (np.abs(sums) - too_large).sum() / predictions.weights.sum())


def scaled_calibration_error(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """As `calibration_error`, after temperature scaling; NaN where no temperature is known."""
    if predictions.scaled is None:
        return math.nan
    return calibration_error(predictions._replace(p_top1=predictions.scaled), sources)


def macro_accuracy(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """Mean accuracy in percent over the classes that the set has images of."""
    return float(100 * np.mean(_class_accuracies(predictions)))


def worst_class_accuracy(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """The least of these. Of few images a class it is low by chance alone."""
    return float(100 * np.min(_class_accuracies(predictions)))


def _class_accuracies(predictions: ImagePredictions) -> np.ndarray:
    total = np.bincount(predictions.label, predictions.weights)
    right = np.bincount(predictions.label, predictions.weights * predictions.hit)
    return right[total > 0] / total[total > 0]


def _folded_normal(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The expectation of a normal number's absolute value."""
    z = mean / np.maximum(spread, 1e-9)
    return spread * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * special.ndtr(-z))


# A number [images] of each image, whose mean in percent is the measure; it has an interval.
OF_IMAGES: dict[str, Callable[[ImagePredictions], np.ndarray]] = {
    "accuracy": lambda after: after.hit,
}
# The same of the answers before and after fine-tuning. lost + both_right is accuracy before,
# gained + both_right accuracy after.
OF_CHANGES: dict[str, Callable[[ImagePredictions, ImagePredictions], np.ndarray]] = {
    "same_top1": lambda before, after: before.top1 == after.top1,
    "both_right": lambda before, after: before.hit & after.hit,
    "lost": lambda before, after: before.hit & ~after.hit,
    "gained": lambda before, after: ~before.hit & after.hit,
}
# A number of all predictions on a set and the images' sources, in percent; it has no interval.
OF_SETS: dict[str, Callable[[ImagePredictions, np.ndarray], float]] = {
    "calibration_error": calibration_error,
    "scaled_calibration_error": scaled_calibration_error,
    "macro_accuracy": macro_accuracy,
    "worst_class_accuracy": worst_class_accuracy,
}
SHARES = ("accuracy", *OF_CHANGES)  # whose intervals end at 0 and 100


def of_images(after: ImagePredictions, before: ImagePredictions | None) -> Mapping[str, np.ndarray]:
    """Each measure of single images, [images]; NaN where it needs other answers `before`."""
    unknown = np.full(len(after.label), np.nan)
    numbers = {name: measure(after) for name, measure in OF_IMAGES.items()}
    return numbers | {
        name: unknown if before is None else measure(before, after)
        for name, measure in OF_CHANGES.items()
    }
