"""Correlations of few units: an exact p, and an interval only where there are enough units."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas

from engine.measures import bootstrap

FEWEST = 3  # values for a coefficient
FOR_AN_INTERVAL = 10  # a bootstrap over fewer repeats the same few units
EXACT = 8  # units, whose 40,320 permutations are all taken
RANDOM = 9_999  # permutations of more units
RESAMPLES = 4000


@dataclass(frozen=True)
class Correlation:
    """A coefficient over `units`, its two-sided p, and the ends of its 95% interval. NaN: the
    coefficient where a variable does not vary or there is a single unit, and the ends where there
    are too few units."""

    units: int
    value: float = math.nan
    p: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        ends = "" if math.isnan(self.low) else f", 95% interval {self.low:+.2f} to {self.high:+.2f}"
        p = "p < 0.001" if self.p < 0.001 else f"p {self.p:.3f}"
        return f"{self.value:+.2f} ({p}{ends})".replace("-", "\N{MINUS SIGN}")


def spearman(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's coefficient of two variables [units] or [units, K], over all their values.

    A unit's K values come from one thing, such as a model that was evaluated on K sets: they are
    permuted and drawn together. p is by permutation of the units, exact for eight or fewer.
    """
    units, rng = len(x), np.random.default_rng(0)
    if units < 2 or x.size < FEWEST or not all(np.ptp(v) > 0 for v in (x, y)):
        return Correlation(units)
    x, y = (pandas.Series(v.ravel()).rank().to_numpy().reshape(units, -1) for v in (x, y))
    if units <= EXACT:
        orders = np.array(list(itertools.permutations(range(units))))
    else:
        orders = rng.permuted(np.tile(np.arange(units), (RANDOM, 1)), axis=1)
    value, shuffled = float(_pearson(x, y)), _pearson(x, y[orders])
    close = 1e-12  # coefficients that are equal but for rounding
    tails = (shuffled <= value + close).sum(), (shuffled >= value - close).sum()
    itself = units > EXACT  # among random permutations, the order that was seen counts as one
    p = float(min(1.0, 2 * (min(tails) + itself) / (len(orders) + itself)))
    if units < FOR_AN_INTERVAL:
        return Correlation(units, value, p)
    drawn = np.random.default_rng(0).integers(0, units, (RESAMPLES, units))
    return Correlation(units, value, p, *bootstrap.interval(_pearson(x[drawn], y[drawn])).tolist())


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's coefficient [...] of values [..., units, K]; NaN where one does not vary."""
    a, b = (v - v.mean(axis=(-2, -1), keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore"):
        norm = np.sqrt((a**2).sum(axis=(-2, -1)) * (b**2).sum(axis=(-2, -1)))
        return (a * b).sum(axis=(-2, -1)) / norm
