"""The measures of a model on a set: what is computed of its predictions.

A measure is a function here, with its kind, unit and caption. Its column in `Grid.cells`, its draws
and intervals, its means over sets, and its place in the files and on the page follow from that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from scipy import special

from engine.measures.predictions import ImagePredictions

BINS = 15  # of confidences
PER_IMAGE, BEFORE_AFTER, WHOLE_SET = "per_image", "before_after", "whole_set"
SCALES = {"pct": 100, "pts": 100, "score": 1, "nats": 1}  # what a mean is multiplied by, by unit

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Measure:
    """A measure, by the name of its function.

    kind: what the function takes and returns.
    - `PER_IMAGE`: (predictions) -> a number of each image, [images];
    - `BEFORE_AFTER`: (predictions before and after fine-tuning) -> the same;
    - `WHOLE_SET`: (predictions, sources as int [images]) -> one number, in its unit.
    The weighted mean over images is the measure of the first two kinds, and has an interval; a
    number of a whole set has none. unit: `pct` and `pts` (percent and points: the mean times 100),
    `score` (as it is) or `nats`. is_share: whether an interval ends at 0 and 100.
    """

    of: Callable[..., Any]
    kind: str
    unit: str
    caption: str
    is_share: bool = False

    @property
    def scale(self) -> int:
        return SCALES[self.unit]


MEASURES: dict[str, Measure] = {}  # in the order of their columns


def measure(
    kind: Literal["per_image", "before_after", "whole_set"],
    unit: Literal["pct", "pts", "score", "nats"],
    caption: str,
    *,
    is_share: bool = False,
) -> Callable[[Function], Function]:
    """Make a function a measure: as in `Measure`."""

    def add(function: Function) -> Function:
        MEASURES[function.__name__] = Measure(function, kind, unit, caption, is_share)
        return function

    return add


def names(*kinds: str) -> list[str]:
    """The names of the measures of these kinds, in order."""
    return [name for name, each in MEASURES.items() if each.kind in kinds]


def of_images(after: ImagePredictions, before: ImagePredictions | None) -> Mapping[str, np.ndarray]:
    """Each measure of single images, [images]; NaN where it needs other answers `before`."""
    numbers = {}
    for name in names(PER_IMAGE, BEFORE_AFTER):
        each = MEASURES[name]
        if each.kind == PER_IMAGE:
            numbers[name] = each.of(after)
        elif before is None:
            numbers[name] = np.full(len(after.label), np.nan)
        else:
            numbers[name] = each.of(before, after)
    return numbers


def legend() -> str:
    """The captions of all measures but accuracy, in a sentence without its stop."""
    return "; ".join(
        f"{name.replace('_', ' ')}: {each.caption}"
        for name, each in MEASURES.items()
        if name != "accuracy"
    )


@measure(PER_IMAGE, "pct", "share of right answers", is_share=True)
def accuracy(after: ImagePredictions) -> np.ndarray:
    return after.hit


@measure(
    PER_IMAGE,
    "score",
    "mean squared distance between the probability of the predicted class and whether it is right, "
    "from 0 (best) to 1",
)
def brier(after: ImagePredictions) -> np.ndarray:
    """The Brier score (Brier 1950) of the event "the predicted class is right"."""
    return (after.p_top1.astype(np.float64) - after.hit) ** 2


@measure(PER_IMAGE, "nats", "mean of -log(probability of the true class), at least 0 (best)")
def negative_log_likelihood(after: ImagePredictions) -> np.ndarray:
    """Probabilities are stored as float32; one that is 0 there counts as the least normal number,
    which is 87.3 nats."""
    least = np.finfo(np.float32).tiny
    return -np.log(np.maximum(after.p_true.astype(np.float64), least))


@measure(BEFORE_AFTER, "pct", "the same answer before and after", is_share=True)
def same_top1(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    return before.top1 == after.top1


# lost + both_right is accuracy before, gained + both_right accuracy after.
@measure(BEFORE_AFTER, "pct", "right both times", is_share=True)
def both_right(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    return before.hit & after.hit


@measure(BEFORE_AFTER, "pct", "right before only", is_share=True)
def lost(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    return before.hit & ~after.hit


@measure(BEFORE_AFTER, "pct", "right after only", is_share=True)
def gained(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    return ~before.hit & after.hit


@measure(WHOLE_SET, "pct", "expected calibration error, debiased (too large on few images)")
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


@measure(WHOLE_SET, "pct", "the same after temperature scaling, where it is stored")
def scaled_calibration_error(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """As `calibration_error`, after temperature scaling; NaN where no temperature is known."""
    if predictions.scaled is None:
        return math.nan
    return calibration_error(predictions._replace(p_top1=predictions.scaled), sources)


@measure(WHOLE_SET, "pct", "mean accuracy over classes")
def macro_accuracy(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """Mean accuracy in percent over the classes that the set has images of."""
    return float(100 * np.mean(_class_accuracies(predictions)))


@measure(WHOLE_SET, "pct", "accuracy on the worst class")
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
