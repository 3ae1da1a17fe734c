"""Metrics of predictions on a dataset: accuracy, top-label Brier score and calibration error.

Each metric is a function with a kind, a unit and a caption. They determine its column in
`Grid.cells`, its draws, intervals and means, and where files and reports show it.
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
SCALES = {"pct": 100, "pts": 100, "score": 1, "nats": 1}  # factor of a mean, by unit

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Metric:
    """A metric, by the name of its function.

    kind: the function's arguments and result.
    - `PER_IMAGE`: (predictions) -> one number per image, [images];
    - `BEFORE_AFTER`: (predictions before and after fine-tuning) -> the same;
    - `WHOLE_SET`: (predictions, sources as int [images]) -> one number, in its unit.
    Metrics of the first two kinds are weighted means over images, with an interval; a number of a
    whole dataset has none. unit: `pct` and `pts` (percent and points: the mean times 100), `score`
    (unscaled) or `nats`. is_share: whether intervals are limited to 0 and 100.
    """

    of: Callable[..., Any]
    kind: str
    unit: str
    caption: str
    is_share: bool = False


METRICS: dict[str, Metric] = {}  # in the order of their columns


def metric(
    kind: Literal["per_image", "before_after", "whole_set"],
    unit: Literal["pct", "pts", "score", "nats"],
    caption: str,
    *,
    is_share: bool = False,
) -> Callable[[Function], Function]:
    """Register a function as a `Metric`."""

    def add(function: Function) -> Function:
        METRICS[function.__name__] = Metric(function, kind, unit, caption, is_share)
        return function

    return add


def names(*kinds: str) -> list[str]:
    """The names of the metrics of these kinds, in order."""
    return [name for name, each in METRICS.items() if each.kind in kinds]


def of_images(after: ImagePredictions, before: ImagePredictions | None) -> Mapping[str, np.ndarray]:
    """The metrics per image, [images]; NaN for metrics that need `before` if it is None."""
    numbers = {}
    for name in names(PER_IMAGE, BEFORE_AFTER):
        each = METRICS[name]
        if each.kind == PER_IMAGE:
            numbers[name] = each.of(after)
        elif before is None:
            numbers[name] = np.full(len(after.label), np.nan)
        else:
            numbers[name] = each.of(before, after)
    return numbers


def legend() -> str:
    """The captions of all metrics except accuracy, without a full stop."""
    return "; ".join(
        f"{name.replace('_', ' ')}: {each.caption}"
        for name, each in METRICS.items()
        if name != "accuracy"
    )


@metric(PER_IMAGE, "pct", "share of right answers", is_share=True)
def accuracy(after: ImagePredictions) -> np.ndarray:
    return after.hit


@metric(
    PER_IMAGE,
    "score",
    "top-label Brier score: mean squared distance between the probability of the predicted class "
    "and whether it is right, from 0 (best) to 1",
)
def top_label_brier(after: ImagePredictions) -> np.ndarray:
    """The Brier score (Brier 1950) of the event "the predicted class is right"."""
    return (after.p_top1.astype(np.float64) - after.hit) ** 2


@metric(PER_IMAGE, "nats", "mean of -log(probability of the true class), at least 0 (best)")
def negative_log_likelihood(after: ImagePredictions) -> np.ndarray:
    """Probabilities are stored as float32; 0 counts as the smallest normal number (87.3 nats)."""
    least = np.finfo(np.float32).tiny
    return -np.log(np.maximum(after.p_true.astype(np.float64), least))


@metric(BEFORE_AFTER, "pct", "agreement of predictions before and after", is_share=True)
def agreement(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    return before.top1 == after.top1


# negative_flips + both_right is accuracy before, positive_flips + both_right accuracy after.
@metric(BEFORE_AFTER, "pct", "right both times", is_share=True)
def both_right(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    return before.hit & after.hit


@metric(BEFORE_AFTER, "pct", "right before only", is_share=True)
def negative_flips(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    return before.hit & ~after.hit


@metric(BEFORE_AFTER, "pct", "right after only", is_share=True)
def positive_flips(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    return ~before.hit & after.hit


@metric(WHOLE_SET, "pct", "expected calibration error, debiased; still too large on few images")
def calibration_error(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """Expected calibration error in points: the mean distance between confidence, the probability
    of the top-1 class, and accuracy, in 15 bins of equal width, open below and closed above (Guo et
    al. 2017, equation 3).

    Chance alone makes the distance in a bin positive, so it is debiased (as in Kumar et al. 2019,
    section 4.2): each bin's sum is assumed normal, with its variance over `sources` (int [images];
    images of a source are not independent), and the bias of its absolute value is subtracted. The
    result may be negative. It has no interval: in simulated campaigns, no interval that was tried
    had its nominal coverage.
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


@metric(WHOLE_SET, "pct", "calibration error after temperature scaling, if stored")
def scaled_calibration_error(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """As `calibration_error`, after temperature scaling; NaN without a temperature."""
    if predictions.scaled is None:
        return math.nan
    return calibration_error(predictions._replace(p_top1=predictions.scaled), sources)


@metric(WHOLE_SET, "pct", "mean per-class accuracy")
def macro_accuracy(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """Mean accuracy in percent over the dataset's classes."""
    return float(100 * np.mean(_class_accuracies(predictions)))


@metric(WHOLE_SET, "pct", "accuracy on the worst class")
def worst_class_accuracy(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """The lowest accuracy of a class in percent. With few images per class, chance makes it low."""
    return float(100 * np.min(_class_accuracies(predictions)))


def _class_accuracies(predictions: ImagePredictions) -> np.ndarray:
    total = np.bincount(predictions.label, predictions.weights)
    right = np.bincount(predictions.label, predictions.weights * predictions.hit)
    return right[total > 0] / total[total > 0]


def _folded_normal(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The expectation of the absolute value of a normal variable."""
    z = mean / np.maximum(spread, 1e-9)
    return spread * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * special.ndtr(-z))
