"""Spearman's rank correlation with an interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from engine.measures import bootstrap
from engine.measures.bootstrap import Ends

FEWEST = 3  # units


class Correlation(NamedTuple):
    """A coefficient, NaN where it has no value, and its 95% interval, NaN where there is none."""

    value: float
    ends: Ends


def spearman(x: np.ndarray, y: np.ndarray, *, resamples: int = 4000, seed: int = 0) -> Correlation:
    """Spearman's coefficient of two variables [units, K], over all their values.

    The percentile interval is by bootstrap over the units: a unit's K values come from one thing,
    such as a model that was evaluated on K sets, and are drawn together. Draws in which a variable
    does not vary have no coefficient and are left out. No interval for fewer than three units.
    """
    nothing = Correlation(math.nan, Ends(math.nan, math.nan, math.nan))
    if x.size < FEWEST:
        return nothing
    (value,) = _coefficients(x.reshape(1, -1), y.reshape(1, -1))
    if math.isnan(value) or len(x) < FEWEST:
        return nothing._replace(value=float(value))
    units = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    drawn = _coefficients(x[units].reshape(resamples, -1), y[units].reshape(resamples, -1))
    return Correlation(float(value), bootstrap.ends(drawn[~np.isnan(drawn)]))


def _coefficients(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The coefficient of each row [B, n]; NaN where one of the two does not vary."""
    a, b = (stats.rankdata(values, axis=1) for values in (x, y))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, np.full(len(x), np.nan), where=norm > 0)
