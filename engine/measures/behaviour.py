"""How a fine-tuned model differs from its pre-trained model, beyond accuracy.

Equal accuracy can hide that half of the predictions changed, or that confidence lost its meaning.
"""

from __future__ import annotations

import numpy as np

from engine.measures.predictions import ImagePredictions
from engine.measures.rows import Agreement

BINS = 15


def agreement(before: ImagePredictions, after: ImagePredictions) -> Agreement:
    """Agreement of two models on the same images."""
    right, now = before.hit, after.hit
    cases = (before.top1 == after.top1, right & now, right & ~now, ~right & now)
    total = after.weights.sum()
    return Agreement(*(float(100 * after.weights[case].sum() / total) for case in cases))


def calibration_error(predictions: ImagePredictions) -> float:
    """Expected calibration error in points: the mean distance between confidence and accuracy.

    Confidence is the probability of the top-1 class; 15 bins of equal width, open below and closed
    above (Guo et al. 2017, equation 3).
    """
    gaps = predictions.weights * (predictions.p_top1.astype(np.float64) - predictions.hit)
    by_bin = np.bincount(bins_of(predictions), gaps)
    return float(100 * np.abs(by_bin).sum() / predictions.weights.sum())


def bins_of(predictions: ImagePredictions) -> np.ndarray:
    """The bin of each image's confidence, [N] in [0, BINS)."""
    edges = np.ceil(predictions.p_top1.astype(np.float64) * BINS)
    return np.clip(edges.astype(int) - 1, 0, BINS - 1)
