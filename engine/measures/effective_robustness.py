"""Effective robustness: accuracy on a shifted dataset above what upstream accuracy predicts.

Over many models, accuracy on a shifted dataset is close to linear in upstream accuracy if both are
on a probit scale, Φ⁻¹ of accuracy (Taori et al. 2020; Miller et al. 2021). A model's effective
robustness is its height above that trend line, in points of accuracy (Taori et al. 2020, section 2;
Fang et al. 2022). Without it, a gain may only reflect a higher upstream accuracy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas
from scipy import special

from engine.measures import bootstrap, model_rows
from engine.measures.metrics import ROBUSTNESS, Grid
from engine.measures.rows import PRE

MODELS_FOR_A_TREND = 3
CLIP = 1e-4  # accuracies closer to 0 or 1 are moved here: their probit would be infinite
# The models that a trend line is fitted over, in the order of preference.
GIVEN = "models given by the user"
PUBLISHED = "published models of ImageNet-1K alone"
CAMPAIGN_MODELS = "pretrained models"


@dataclass(frozen=True, eq=False)
class Baseline:
    """Models outside the campaign, to fit lines over.

    accuracies: in percent, one row per model and one column per dataset, NaN if unknown. basis:
    `GIVEN` or `PUBLISHED`; published models are resampled by `model_rows.family`.
    """

    accuracies: pandas.DataFrame
    basis: str


@dataclass(frozen=True)
class FittedLine:
    """A fitted line: number of models, slope and R2 on the probit scale, and the range of upstream
    accuracy (percent) of the fit, outside of which it is extrapolated."""

    models: int
    slope: float
    r2: float
    low: float
    high: float

    def extrapolates(self, upstream: np.ndarray) -> np.ndarray:
        """Whether upstream accuracies in percent are outside the range."""
        return (upstream < self.low) | (upstream > self.high)


@dataclass(frozen=True, eq=False)
class Trend:
    """The trend line of a set.

    cells, upstream: the rows of the grid that are measured against it, and those of the same models
    on the upstream set. fitted: which of them it is fitted over; none where `given`, float64 [2, F]
    of upstream and shifted accuracy in percent, takes their place. basis: `GIVEN`, `PUBLISHED` or
    `CAMPAIGN_MODELS`. families: str [F] of `given`, which are drawn as one in intervals; empty
    where the models are taken as they are.
    """

    cells: np.ndarray
    upstream: np.ndarray
    fitted: np.ndarray
    given: np.ndarray
    basis: str
    families: np.ndarray

    def models(self, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Upstream and shifted accuracy [B, F] in percent of the fitted models, from the accuracy
        of all cells [B, cells]. Given models are the same in all draws."""
        if self.basis != CAMPAIGN_MODELS:
            return self.given[:1], self.given[1:]
        upstream, shifted = (accuracy[:, of[self.fitted]] for of in (self.upstream, self.cells))
        return upstream, shifted

    def predicted(
        self, accuracy: np.ndarray, upstream: np.ndarray, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Accuracy on the set [B, M] in percent that the line of each draw predicts from upstream
        accuracy [B, M]; NaN without a line. weights: of the models, [B, F]."""
        return predicted(*self.models(accuracy), upstream, weights)

    def residuals(self, accuracy: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Effective robustness [B, its cells] in points; NaN without a line."""
        on_line = self.predicted(accuracy, accuracy[:, self.upstream], weights)
        return accuracy[:, self.cells] - on_line

    def drawn(self, draws: int) -> np.ndarray | None:
        """The weight of each given model in each draw [draws, F], equal within its family."""
        if not len(self.families):
            return None
        names, place = np.unique(self.families, return_inverse=True)
        return bootstrap.counts([f"family {name}" for name in names], draws)[place].T

    def fit(self, accuracy: np.ndarray) -> FittedLine:
        """The line, from the accuracy of all cells [cells]."""
        upstream, shifted = self.models(accuracy[None])
        slope, _, r2 = least_squares(probit(upstream), probit(shifted))
        ends = float(upstream.min()), float(upstream.max())
        return FittedLine(upstream.shape[1], float(slope.item()), float(r2.item()), *ends)


def trends(grid: Grid, baseline: Baseline | None = None) -> dict[str, Trend]:
    """The trend line of each dataset that has enough models.

    A line describes models without robustness interventions. It is therefore fitted over the
    baseline, or without one over the grid's pretrained models, and never over fine-tuned ones.
    """
    cells, by_set = grid.cells, {}
    elsewhere = ~cells["on_downstream"] & (cells["on_upstream"] >= 0)
    # Counts a model of several campaigns once, even if a common report renames it.
    pre = cells[(cells["method"] == PRE) & (cells["downstream"] == "")]
    table = pre.pivot(index="model", columns="evaluated_on", values="accuracy").drop_duplicates()
    distinct = pre.index[pre["model"].isin(table.index)]
    for name in grid.sets:
        on_set = cells[elsewhere & (cells["evaluated_on"] == name)]
        places, upstream = on_set.index.to_numpy(), on_set["on_upstream"].to_numpy()
        fitted, none = np.flatnonzero(on_set.index.isin(distinct)), np.empty((2, 0))
        if baseline is not None:
            known = baseline.accuracies[[grid.upstream, name]].dropna()
            if len(known) >= MODELS_FOR_A_TREND:
                is_drawn = baseline.basis == PUBLISHED
                families = np.array([model_rows.family(of) for of in known.index if is_drawn])
                values = known.to_numpy().T
                by_set[name] = Trend(places, upstream, fitted[:0], values, baseline.basis, families)
                continue
        if len(fitted) >= MODELS_FOR_A_TREND:
            by_set[name] = Trend(places, upstream, fitted, none, CAMPAIGN_MODELS, none[0])
    return by_set


def above_trend(grid: Grid, by_set: Mapping[str, Trend]) -> Grid:
    """The grid with every cell's effective robustness. Lines over models of the grid, or over
    families of published ones, are refitted in every draw."""
    if not by_set:
        return grid
    accuracy, samples = grid.cells["accuracy"].to_numpy(float)[None], grid.draws["accuracy"]
    values, draws = np.full(len(grid.cells), np.nan), np.full_like(samples, np.nan)
    by_seed = np.full_like(grid.by_seed["accuracy"], np.nan)
    for trend in by_set.values():
        values[trend.cells] = trend.residuals(accuracy)[0]
        draws[:, trend.cells] = trend.residuals(samples, trend.drawn(len(samples)))
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


def predicted(
    upstream: np.ndarray, shifted: np.ndarray, at: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Accuracy on the set [B, M] at upstream accuracies `at` [B, M], by the least-squares line of
    each row over the accuracies [B, F] of F models, all in percent; NaN if the models have the
    same upstream accuracy. weights: of the models, [B, F]; None: 1."""
    slope, level, _ = least_squares(probit(upstream), probit(shifted), weights)
    return 100 * special.ndtr(slope * probit(at) + level)


def least_squares(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope, level and R2 [B, 1] of the line of each row over points [B, F]; NaN if x does not
    vary. weights: of the points, [B, F]; None: 1."""
    of = np.ones_like(x) if weights is None else weights
    total = of.sum(axis=1, keepdims=True)
    total = np.where(total > 0, total, np.nan)  # a draw may contain no model

    def mean(values: np.ndarray) -> np.ndarray:
        return np.einsum("...f,...f->...", of, values)[..., None] / total

    x0, y0 = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    x, y = x - x0, y - y0  # avoids cancellation below
    mean_x, mean_y = mean(x), mean(y)
    variance, covariance = mean(x * x) - mean_x**2, mean(x * y) - mean_x * mean_y
    slope = covariance / np.where(variance > 1e-12, variance, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = slope * covariance / (mean(y * y) - mean_y**2)
    return slope, mean_y + y0 - slope * (mean_x + x0), r2
