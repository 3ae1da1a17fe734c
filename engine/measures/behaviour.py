"""How a fine-tuned model differs from its pre-trained model, beyond accuracy.

Equal accuracy can hide that half of the predictions changed, or that confidence lost its meaning.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from engine.measures.predictions import ImagePredictions

BINS = 15


def agreement(before: ImagePredictions, after: ImagePredictions) -> np.ndarray:
    """bool [images, 3]: the same top-1 class before and after; lost (right before only); gained
    (right after only)."""
    same = before.top1 == after.top1
    return np.stack([same, before.hit & ~after.hit, ~before.hit & after.hit], axis=1)


def calibration_error(predictions: ImagePredictions, sources: np.ndarray) -> float:
    """Expected calibration error in points: the mean distance between confidence and accuracy.

    Confidence is the probability of the top-1 class; 15 bins of equal width, open below and closed
    above (Guo et al. 2017, equation 3). The distance in a bin is above 0 by chance alone, so it is
    debiased (as Kumar et al. 2019, section 4.2): each bin's sum is taken to be normal, with its
    variance over `sources` (int [images]: the images of a source are not independent), and what the
    absolute value of such a number is too large by is subtracted. The result may be below 0.
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


def _folded_normal(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The expectation of a normal number's absolute value."""
    z = mean / np.maximum(spread, 1e-9)
    return spread * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * special.ndtr(-z))
