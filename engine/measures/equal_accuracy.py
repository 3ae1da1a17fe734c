"""Robustness at equal downstream accuracy: methods against a curve of interpolated models.

A method that adapts less often keeps more accuracy on other datasets. WiSE-FT's interpolations
trade one accuracy for the other, so a method is compared with the point of the curve that has the
method's downstream accuracy. Between two evaluated alphas, the curve is a straight line in the
plane of both accuracies, each a mean over the downstream datasets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas

from engine.measures import bootstrap, seeds
from engine.measures.metrics import Grid
from engine.measures.tables import ordered, with_ends


def against_curve(grid: Grid, points: Sequence[int], arms: Sequence[int]) -> pandas.DataFrame:
    """Compare arms with a curve (both by index in `grid.arms`).

    points: the curve's arms in the order of alpha. Returns one row per arm: arm;
    downstream_accuracy_pct and OOD_accuracy_pct, its accuracies;
    curve_OOD_accuracy_pct, that of the curve at equal downstream accuracy (the highest if
    there are several such points, NaN if there is none); difference_pts, the arm minus the curve,
    and the bounds of its paired interval. In draws that a curve does not reach, its nearest point
    counts.
    """
    cells, asked, means = grid.cells, [*points, *arms], []
    own = cells[cells["on_downstream"] & cells["downstream"].isin(grid.downstreams)]
    for part in (own, grid.ri_cells):
        part = ordered(part[part["arm"].isin(asked)], arm=asked)
        means.append(grid.mean(part, ["arm"]))
    values = np.stack([of.values() for of in means])
    draws = np.stack([of.draws() for of in means], axis=1).astype(float)
    by_seed = np.stack([grid.by_seed["accuracy"] @ of.weights for of in means], axis=1)
    count = len(points)

    def on_curve(accuracies: np.ndarray, *, nearest: bool) -> np.ndarray:
        """From accuracies [..., 2, K] of all arms, the curve's at each compared arm."""
        x, y = accuracies[..., 0, :], accuracies[..., 1, :]
        at, of_curve = x[..., count:], x[..., :count]
        if nearest:
            at = at.clip(of_curve.min(-1, keepdims=True), of_curve.max(-1, keepdims=True))
        return interpolated(of_curve[..., None, :], y[..., None, :count], at)

    other = values[1, count:]
    curve = on_curve(values, nearest=False)
    samples, of_seeds = (of[:, 1, count:] - on_curve(of, nearest=True) for of in (draws, by_seed))
    ends = bootstrap.interval(samples)
    ends = seeds.widened(other - curve, ends, seeds.of_mean(of_seeds))
    ends = np.where(np.isnan(curve), np.nan, ends)
    table = {
        "arm": list(arms),
        "downstream_accuracy_pct": values[0, count:],
        "OOD_accuracy_pct": other,
        "curve_OOD_accuracy_pct": curve,
    }
    names = with_ends("difference_pts")
    return pandas.DataFrame(table | dict(zip(names, (other - curve, *ends), strict=True)))


def interpolated(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The y of polylines with corners x, y [..., A] where x equals `at` [...]: the highest if there
    are several, NaN if there is none."""
    at = at[..., None]
    x0, x1, y0, y1 = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    crosses = (x0 - at) * (x1 - at) < 0
    share = (at - x0) / np.where(crosses, x1 - x0, 1)
    between = np.where(crosses, y0 + share * (y1 - y0), -np.inf)
    best = np.maximum(np.where(x == at, y, -np.inf).max(-1), between.max(-1))
    return np.where(np.isneginf(best), np.nan, best)
