"""How a fine-tuned model differs from the one it started from, beyond its accuracy.

Equal accuracy can hide that half of the answers changed, that confidence lost its meaning, or that
a gain on one set is only what any model that good upstream would show. Arithmetic on stored
predictions; numpy only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from engine.measures.predictions import Seen
from engine.measures.rows import PRE, Accuracy, Agreement, Behaviour, Cell

BINS = 15
MODELS_FOR_A_TREND = 3


def agreement(before: Seen, after: Seen) -> Agreement:
    """Agreement of two models on the same images."""
    right, now = before.hit, after.hit
    cases = (before.top1 == after.top1, right & now, right & ~now, ~right & now)
    total = after.weights.sum()
    return Agreement(*(float(100 * after.weights[case].sum() / total) for case in cases))


def calibration_error(seen: Seen) -> float:
    """Expected calibration error in points: the mean distance between confidence and accuracy.

    Confidence is the probability of the top-1 class; 15 bins of equal width, open below and closed
    above (Guo et al. 2017, equation 3).
    """
    confidence = seen.p_top1.astype(np.float64)
    gaps = np.bincount(bins_of(seen), seen.weights * (confidence - seen.hit), minlength=BINS)
    return float(100 * np.abs(gaps).sum() / seen.weights.sum())


def bins_of(seen: Seen) -> np.ndarray:
    """The bin of each image's confidence, [N] in [0, BINS)."""
    return np.clip(np.ceil(seen.p_top1.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)


def effective_robustness(
    upstream: Sequence[float],
    shifted: Sequence[float],
    fit: Sequence[bool] | np.ndarray | None = None,
) -> np.ndarray:
    """[M] accuracy on the shifted set above the models' trend line, in points.

    upstream, shifted [M]: accuracies in percent. The line is the least-squares fit of
    logit(shifted) on logit(upstream) over the models at hand, or those that `fit` marks (Taori et
    al. 2020). Accuracies are kept 0.01 points away from 0 and 100, whose logits are infinite.
    Raises ValueError for fewer than three models, or models that are all as good upstream.
    """
    chosen = np.ones(len(upstream), bool) if fit is None else np.asarray(fit, bool)
    if (count := int(chosen.sum())) < MODELS_FOR_A_TREND:
        raise ValueError(
            f"effective robustness needs a trend line over {MODELS_FOR_A_TREND} or more models, "
            f"got {count}: evaluate more models"
        )
    found = heights(np.asarray([upstream]), np.asarray([shifted]), chosen)[0]
    if np.isnan(found).any():
        raise ValueError(
            f"effective robustness: all {count} models have the same upstream accuracy, "
            "which gives no trend line; add a model that differs"
        )
    return found


def heights(upstream: np.ndarray, shifted: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[B, M] as `effective_robustness` for each row of accuracies [B, M], with a line of its own
    over the models `chosen` (bool [M]); NaN in rows that have no line."""
    x, y = _logit(upstream), _logit(shifted)
    middle = x[:, chosen].mean(axis=1, keepdims=True)
    centred = x[:, chosen] - middle
    spread = (centred**2).sum(axis=1, keepdims=True)
    along = (centred * y[:, chosen]).sum(axis=1, keepdims=True)
    slope = np.divide(along, spread, out=np.full_like(spread, np.nan), where=spread > 1e-12)
    line = y[:, chosen].mean(axis=1, keepdims=True) + slope * (x - middle)
    return np.asarray(shifted, np.float64) - 100 / (1 + np.exp(-line))


def above_trend(
    rows: Sequence[Behaviour], accuracy: Sequence[Accuracy], sets: Sequence[str], upstream: str
) -> tuple[Behaviour, ...]:
    """Rows with their effective robustness on each of `sets`, against accuracy on `upstream`.

    A set's trend line is fitted over the pre-trained models where there are three or more, as in
    the paper, or else over them and all models fine-tuned on other sets. Interpolations (arms with
    an alpha) are measured against it but shape no line. Left None where there is no line.
    """
    known = {row.place: row.accuracy for row in accuracy}
    found: dict[Cell, float] = {}
    for cells, fit in trends(known, sets, upstream).values():
        x = [known[at(cell, upstream)] for cell in cells]
        try:
            values = effective_robustness(x, [known[cell] for cell in cells], fit)
        except ValueError:  # no line: too few models, or all of them as good upstream
            continue
        found |= zip(cells, map(float, values), strict=True)
    return tuple(replace(row, effective_robustness=found.get(row.place)) for row in rows)


def trends(
    known: Collection[Cell], sets: Sequence[str], upstream: str
) -> dict[str, tuple[list[Cell], np.ndarray]]:
    """By set, the cells that are measured against its trend line, and which of them shape it."""
    few = sum(cell.method == PRE and cell.evaluated_on == upstream for cell in known)
    only_before = few >= MODELS_FOR_A_TREND
    found = {}
    for name in sets:
        cells = [
            cell
            for cell in known
            if cell.evaluated_on == name != cell.downstream and at(cell, upstream) in known
        ]
        fit = [cell.method == PRE or (not only_before and cell.alpha is None) for cell in cells]
        found[name] = cells, np.array(fit, bool)
    return found


def at(cell: Cell, name: str) -> Cell:
    """The same model on another set."""
    return replace(cell, evaluated_on=name)


def _logit(percent: np.ndarray) -> np.ndarray:
    share = np.clip(np.asarray(percent, np.float64) / 100, 1e-4, 1 - 1e-4)
    return np.log(share / (1 - share))
