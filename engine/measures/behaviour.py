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
    upstream: np.ndarray, shifted: np.ndarray, in_fit: np.ndarray
) -> np.ndarray:
    """[B, M] accuracy on the shifted set above the models' trend line, in points.

    upstream, shifted [B, M]: accuracies in percent; each row has its own line, the least-squares
    fit of logit(shifted) on logit(upstream) over the models `in_fit` (bool [M]) (Taori et al.
    2020). Accuracies are clipped 0.01 points away from 0 and 100, whose logits are infinite. NaN in
    rows whose fitted models have the same upstream accuracy.
    """
    x, y = _logit(upstream), _logit(shifted)
    mean = x[:, in_fit].mean(axis=1, keepdims=True)
    centred = x[:, in_fit] - mean
    variance = (centred**2).sum(axis=1, keepdims=True)
    covariance = (centred * y[:, in_fit]).sum(axis=1, keepdims=True)
    slope = np.divide(covariance, variance, np.full_like(variance, np.nan), where=variance > 1e-12)
    line = y[:, in_fit].mean(axis=1, keepdims=True) + slope * (x - mean)
    return shifted - 100 / (1 + np.exp(-line))


def above_trend(
    rows: Sequence[Behaviour], accuracy: Sequence[Accuracy], sets: Sequence[str], upstream: str
) -> tuple[Behaviour, ...]:
    """Rows with their effective robustness on each of `sets`, against accuracy on `upstream`.

    A set's trend line is fitted over the pre-trained models where there are three or more, as in
    the paper, or else over them and all models fine-tuned on other sets. Interpolations (arms with
    an alpha) are measured against it but not fitted, nor are settings beside the setting "" where a
    campaign has that. None where there is no line.
    """
    known = {row.cell: row.accuracy for row in accuracy}
    robustness: dict[ModelOnSet, float] = {}
    for cells, fit in trends(known, sets, upstream).values():
        x, y = ([[known[c] for c in on]] for on in ([at(c, upstream) for c in cells], cells))
        (values,) = effective_robustness(np.array(x), np.array(y), fit)
        if not np.isnan(values).any():
            robustness |= zip(cells, values.tolist(), strict=True)
    return tuple(replace(row, effective_robustness=robustness.get(row.cell)) for row in rows)


def trends(
    known: Collection[ModelOnSet], sets: Sequence[str], upstream: str
) -> dict[str, tuple[list[ModelOnSet], np.ndarray]]:
    """By set, the cells that are measured against its trend line, and which of them it is fitted
    over; sets with fewer than `MODELS_FOR_A_TREND` of these are left out."""
    pre_trained = sum(cell.method == PRE and cell.evaluated_on == upstream for cell in known)
    pre_trained_only = pre_trained >= MODELS_FOR_A_TREND
    has_plain = any(cell.method != PRE and not cell.setting for cell in known)

    def is_fitted(cell: ModelOnSet) -> bool:
        is_point = cell.alpha is not None or (has_plain and cell.setting != "")
        return cell.method == PRE or not (pre_trained_only or is_point)

    by_set = {}
    for name in sets:
        cells = [
            cell
            for cell in known
            if cell.evaluated_on == name != cell.downstream and at(cell, upstream) in known
        ]
        fit = [is_fitted(cell) for cell in cells]
        if sum(fit) >= MODELS_FOR_A_TREND:
            by_set[name] = cells, np.array(fit)
    return by_set


def at(cell: ModelOnSet, name: str) -> ModelOnSet:
    """The same model on another set."""
    return replace(cell, evaluated_on=name)


def _logit(percent: np.ndarray) -> np.ndarray:
    share = np.clip(np.asarray(percent, np.float64) / 100, 1e-4, 1 - 1e-4)
    return np.log(share / (1 - share))
