"""Effective robustness: accuracy on a shifted set above what upstream accuracy predicts.

Over many models, accuracy on a shifted set is close to a line in accuracy upstream once both are on
a probit scale, Φ⁻¹ of the share of right answers (Taori et al. 2020; Miller et al. 2021). A model's
effective robustness is its height above that trend line, in points of accuracy (Taori et al. 2020,
section 2; Fang et al. 2022). A gain on a set may be no more than what any model with the same
upstream accuracy shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas
from scipy import special

from engine.measures.metrics import ROBUSTNESS, Grid
from engine.measures.rows import PRE

MODELS_FOR_A_TREND = 3
CLIP = 1e-4  # a share this near 0 or 1 is moved here: its probit would be infinite
# What a trend line is fitted over, in the order of preference.
GIVEN = "models given by the user"
PRE_TRAINED = "pre-trained models"


@dataclass(frozen=True, eq=False)
class Trend:
    """The trend line of a set.

    cells, upstream: the rows of the grid that are measured against it, and those of the same models
    on the upstream set. fitted: which of them it is fitted over; none where `given`, float64 [2, F]
    of upstream and shifted accuracy in percent, takes their place. basis: `GIVEN` or `PRE_TRAINED`.
    """

    cells: np.ndarray
    upstream: np.ndarray
    fitted: np.ndarray
    given: np.ndarray
    basis: str

    def predicted(self, accuracy: np.ndarray, upstream: np.ndarray) -> np.ndarray:
        """Accuracy on the set [B, M] in percent that the line of each draw predicts from upstream
        accuracy [B, M], from the accuracy of all cells [B, cells]; NaN where there is no line. What
        the user gave is the same in all draws."""
        x, y = self.given[:1], self.given[1:]
        if self.basis == PRE_TRAINED:
            x, y = (accuracy[:, places[self.fitted]] for places in (self.upstream, self.cells))
        return predicted(x, y, upstream)

    def residuals(self, accuracy: np.ndarray) -> np.ndarray:
        """Effective robustness [B, its cells] in points; NaN where there is no line."""
        return accuracy[:, self.cells] - self.predicted(accuracy, accuracy[:, self.upstream])


def trends(grid: Grid, models: pandas.DataFrame | None = None) -> dict[str, Trend]:
    """The trend line of each of the sets; left out are sets with too few models for one.

    A line describes models that nobody made robust to the set. It is therefore fitted over the
    rows that the user gave (`models`, as of `model_rows`), or else over the grid's pre-trained
    models, each once, and never over fine-tuned ones, which are measured against it.
    """
    cells, by_set = grid.cells, {}
    elsewhere = (cells["downstream"] != cells["evaluated_on"]) & (cells["on_upstream"] >= 0)
    # A model of several campaigns is one, though a common report may name it after each.
    pre = cells[cells["method"] == PRE]
    table = pre.pivot(index="model", columns="evaluated_on", values="accuracy").drop_duplicates()
    distinct = pre.index[pre["model"].isin(table.index)]
    for name in grid.sets:
        on_set = cells[elsewhere & (cells["evaluated_on"] == name)]
        places, upstream = on_set.index.to_numpy(), on_set["on_upstream"].to_numpy()
        fitted, given = np.flatnonzero(on_set.index.isin(distinct)), np.empty((2, 0))
        if models is not None:
            given = models[[grid.upstream, name]].dropna().to_numpy().T
        if given.shape[1] >= MODELS_FOR_A_TREND:
            by_set[name] = Trend(places, upstream, fitted[:0], given, GIVEN)
        elif len(fitted) >= MODELS_FOR_A_TREND:
            by_set[name] = Trend(places, upstream, fitted, given[:, :0], PRE_TRAINED)
    return by_set


def above_trend(grid: Grid, by_set: Mapping[str, Trend]) -> Grid:
    """The grid with every cell's effective robustness against the trend line of its set. Lines over
    models of the grid are fitted again in every draw."""
    if not by_set:
        return grid
    accuracy, samples = grid.cells["accuracy"].to_numpy(float)[None], grid.draws["accuracy"]
    values, draws = np.full(len(grid.cells), np.nan), np.full_like(samples, np.nan)
    by_seed = np.full_like(grid.by_seed["accuracy"], np.nan)
    for trend in by_set.values():
        values[trend.cells] = trend.residuals(accuracy)[0]
        draws[:, trend.cells] = trend.residuals(samples)
        by_seed[:, trend.cells] = trend.residuals(grid.by_seed["accuracy"])
    cells = grid.cells.assign(**{ROBUSTNESS: values})
    return dataclasses.replace(
        grid,
        cells=cells,
        draws={**grid.draws, ROBUSTNESS: draws},
        by_seed={**grid.by_seed, ROBUSTNESS: by_seed},
    )


def probit(percent: np.ndarray) -> np.ndarray:
    """Φ⁻¹ of accuracies in percent, which are first moved 0.01 points away from 0 and 100."""
    return special.ndtri(np.clip(np.asarray(percent, np.float64) / 100, CLIP, 1 - CLIP))


def predicted(upstream: np.ndarray, shifted: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Accuracy on the set [B, M] at upstream accuracies `at` [B, M], by the least-squares line of
    each row over the accuracies [B, F] of F models, all in percent; NaN where the models have the
    same upstream accuracy."""
    x, y = probit(upstream), probit(shifted)
    mean_x, mean_y = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    variance = ((x - mean_x) ** 2).sum(axis=1, keepdims=True)
    covariance = ((x - mean_x) * (y - mean_y)).sum(axis=1, keepdims=True)
    slope = covariance / np.where(variance > 1e-12, variance, np.nan)
    return 100 * special.ndtr(slope * probit(at) + (mean_y - slope * mean_x))
