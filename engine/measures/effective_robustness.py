"""Effective robustness: accuracy on a shifted set above what upstream accuracy predicts.

Over many models, accuracy on a shifted set is close to a line in accuracy upstream once both are on
a probit scale, Φ⁻¹ of the share of right answers (Taori et al. 2020; Miller et al. 2021). A model's
effective robustness is its height above that trend line, in points of accuracy (Taori et al. 2020,
section 2; Fang et al. 2022). A gain on a set may be no more than what any model with the same
upstream accuracy shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from engine.measures.model_rows import ModelRows
from engine.measures.rows import PRE, Accuracy, Behaviour, ModelOnSet

MODELS_FOR_A_TREND = 3
CLIP = 1e-4  # a share this near 0 or 1 is moved here: its probit would be infinite
# What a trend line is fitted over, in the order of preference.
GIVEN = "models given by the user"
PRE_TRAINED = "pre-trained models"


@dataclass(frozen=True)
class Line:
    """Lines on the probit scale, one a row: slope and level at 0, each [B, 1]; NaN where the fitted
    models have the same upstream accuracy."""

    slope: np.ndarray
    level: np.ndarray

    @classmethod
    def fit(cls, upstream: np.ndarray, shifted: np.ndarray) -> Line:
        """Least squares over the F models of each row; accuracies [B, F] in percent."""
        x, y = probit(upstream), probit(shifted)
        mean_x, mean_y = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
        variance = ((x - mean_x) ** 2).sum(axis=1, keepdims=True)
        covariance = ((x - mean_x) * (y - mean_y)).sum(axis=1, keepdims=True)
        nothing = np.full_like(variance, np.nan)
        slope = np.divide(covariance, variance, nothing, where=variance > 1e-12)
        return cls(slope, mean_y - slope * mean_x)

    def accuracy(self, upstream: np.ndarray) -> np.ndarray:
        """Predicted accuracy [B, M] in percent, from upstream accuracy [B, M] in percent."""
        return 100 * special.ndtr(self.slope * probit(upstream) + self.level)


@dataclass(frozen=True)
class Trend:
    """The trend line of a set.

    cells: the grid's models that are measured against it, on this set. fitted: those of them that
    it is fitted over; empty where `given`, float64 [2, F] of upstream and shifted accuracy in
    percent, takes their place. basis: `GIVEN` or `PRE_TRAINED`.
    """

    cells: tuple[ModelOnSet, ...]
    fitted: tuple[ModelOnSet, ...]
    given: np.ndarray
    basis: str

    @property
    def models(self) -> int:
        """How many models the line is fitted over."""
        return len(self.fitted) + self.given.shape[1]

    def line(self, accuracy: Callable[[ModelOnSet], np.ndarray], upstream: str) -> Line:
        """The line of each draw; `accuracy` gives a cell's draws [B] in percent. Accuracies that
        the user gave are the same in all draws."""
        if not self.fitted:
            return Line.fit(*self.given[:, None])
        x = np.stack([accuracy(at(cell, upstream)) for cell in self.fitted], axis=1)
        return Line.fit(x, np.stack([accuracy(cell) for cell in self.fitted], axis=1))

    def residuals(
        self, accuracy: Callable[[ModelOnSet], np.ndarray], upstream: str
    ) -> dict[ModelOnSet, np.ndarray]:
        """Effective robustness [B] in points of every cell, by `line`; NaN where there is none."""
        line = self.line(accuracy, upstream)
        return {
            cell: accuracy(cell) - line.accuracy(accuracy(at(cell, upstream))[:, None])[:, 0]
            for cell in self.cells
        }


def trends(
    known: Collection[ModelOnSet],
    sets: Sequence[str],
    upstream: str,
    models: ModelRows | None = None,
) -> dict[str, Trend]:
    """The trend line of each of `sets`; left out are sets with too few models for one.

    A line describes models that nobody made robust to the set. It is therefore fitted over the
    rows that the user gave (`models`), or else over the grid's pre-trained models, and never over
    fine-tuned ones, which are measured against it.
    """
    known, by_set = dict.fromkeys(known), {}
    for name in sets:
        cells = tuple(
            cell
            for cell in known
            if cell.evaluated_on == name != cell.downstream and at(cell, upstream) in known
        )
        pre_trained = tuple(cell for cell in cells if cell.method == PRE)
        given = models.points(name) if models else np.empty((2, 0))
        nobody = np.empty((2, 0))
        options = [
            Trend(cells, (), given, GIVEN),
            Trend(cells, pre_trained, nobody, PRE_TRAINED),
        ]
        enough = [trend for trend in options if trend.models >= MODELS_FOR_A_TREND]
        if cells and enough:
            by_set[name] = enough[0]
    return by_set


def above_trend(
    rows: Sequence[Behaviour],
    accuracy: Sequence[Accuracy],
    by_set: Mapping[str, Trend],
    upstream: str,
) -> tuple[Behaviour, ...]:
    """Rows with their effective robustness against the `trends` of their set; None where it has
    none, or the fitted models have the same upstream accuracy."""
    known = {row.cell: np.array([row.accuracy]) for row in accuracy}
    values: dict[ModelOnSet, float] = {}
    for trend in by_set.values():
        residuals = trend.residuals(known.__getitem__, upstream)
        values |= {cell: float(x[0]) for cell, x in residuals.items() if not np.isnan(x[0])}
    return tuple(replace(row, effective_robustness=values.get(row.cell)) for row in rows)


def at(cell: ModelOnSet, name: str) -> ModelOnSet:
    """The same model on another set."""
    return replace(cell, evaluated_on=name)


def probit(percent: np.ndarray) -> np.ndarray:
    """Φ⁻¹ of accuracies in percent, which are first moved 0.01 points away from 0 and 100."""
    return special.ndtri(np.clip(np.asarray(percent, np.float64) / 100, CLIP, 1 - CLIP))
