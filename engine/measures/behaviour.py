"""How a fine-tuned model differs from its pre-trained model, beyond accuracy.

Equal accuracy can hide that half of the predictions changed, or that confidence lost its meaning; a
gain on a set may be what any model with the same upstream accuracy shows. NumPy only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from engine.measures.predictions import ImagePredictions
from engine.measures.rows import PRE, Accuracy, Agreement, Behaviour, ModelOnSet

BINS = 15
MODELS_FOR_A_TREND = 3


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


def effective_robustness(
    upstream: Sequence[float],
    shifted: Sequence[float],
    fit: Sequence[bool] | np.ndarray | None = None,
) -> np.ndarray:
    """[M] accuracy on the shifted set above the models' trend line, in points.

    upstream, shifted [M]: accuracies in percent. The line is the least-squares fit of
    logit(shifted) on logit(upstream) over all models, or those that `fit` marks (Taori et al.
    2020). Accuracies are clipped 0.01 points away from 0 and 100, whose logits are infinite.
    Raises ValueError for fewer than three models, or if all have the same upstream accuracy.
    """
    in_fit = np.full(len(upstream), True) if fit is None else np.asarray(fit, bool)
    if (count := int(in_fit.sum())) < MODELS_FOR_A_TREND:
        raise ValueError(
            f"effective robustness needs a trend line over {MODELS_FOR_A_TREND} or more models, "
            f"got {count}: evaluate more models"
        )
    robustness = heights(np.asarray([upstream]), np.asarray([shifted]), in_fit)[0]
    if np.isnan(robustness).any():
        raise ValueError(
            f"effective robustness: all {count} models have the same upstream accuracy, "
            "which gives no trend line; add a model that differs"
        )
    return robustness


def heights(upstream: np.ndarray, shifted: np.ndarray, in_fit: np.ndarray) -> np.ndarray:
    """[B, M] `effective_robustness` of each row of accuracies [B, M], whose line is fitted over the
    models `in_fit` (bool [M]); NaN in rows that have no line."""
    x, y = _logit(upstream), _logit(shifted)
    mean = x[:, in_fit].mean(axis=1, keepdims=True)
    centred = x[:, in_fit] - mean
    variance = (centred**2).sum(axis=1, keepdims=True)
    covariance = (centred * y[:, in_fit]).sum(axis=1, keepdims=True)
    slope = np.divide(covariance, variance, np.full_like(variance, np.nan), where=variance > 1e-12)
    line = y[:, in_fit].mean(axis=1, keepdims=True) + slope * (x - mean)
    return np.asarray(shifted, np.float64) - 100 / (1 + np.exp(-line))


def above_trend(
    rows: Sequence[Behaviour], accuracy: Sequence[Accuracy], sets: Sequence[str], upstream: str
) -> tuple[Behaviour, ...]:
    """Rows with their effective robustness on each of `sets`, against accuracy on `upstream`.

    A set's trend line is fitted over the pre-trained models where there are three or more, as in
    the paper, or else over them and all models fine-tuned on other sets. Interpolations (arms with
    an alpha) are measured against it but not fitted. None where there is no line.
    """
    known = {row.cell: row.accuracy for row in accuracy}
    robustness: dict[ModelOnSet, float] = {}
    for cells, fit in trends(known, sets, upstream).values():
        x = [known[at(cell, upstream)] for cell in cells]
        try:
            values = effective_robustness(x, [known[cell] for cell in cells], fit)
        except ValueError:  # no line: too few models, or all of them as good upstream
            continue
        robustness |= zip(cells, map(float, values), strict=True)
    return tuple(replace(row, effective_robustness=robustness.get(row.cell)) for row in rows)


def trends(
    known: Collection[ModelOnSet], sets: Sequence[str], upstream: str
) -> dict[str, tuple[list[ModelOnSet], np.ndarray]]:
    """By set, the cells that are measured against its trend line, and which of them it is fitted
    over."""
    pre_trained = sum(cell.method == PRE and cell.evaluated_on == upstream for cell in known)
    pre_trained_only = pre_trained >= MODELS_FOR_A_TREND
    by_set = {}
    for name in sets:
        cells = [
            cell
            for cell in known
            if cell.evaluated_on == name != cell.downstream and at(cell, upstream) in known
        ]
        fit = [
            cell.method == PRE or (not pre_trained_only and cell.alpha is None) for cell in cells
        ]
        by_set[name] = cells, np.array(fit, bool)
    return by_set


def at(cell: ModelOnSet, name: str) -> ModelOnSet:
    """The same model on another set."""
    return replace(cell, evaluated_on=name)


def _logit(percent: np.ndarray) -> np.ndarray:
    share = np.clip(np.asarray(percent, np.float64) / 100, 1e-4, 1 - 1e-4)
    return np.log(share / (1 - share))
