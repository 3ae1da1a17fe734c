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
    value: float
    p: float
    low: float
    high: float

    def __str__(self) -> str:
        ends = "" if math.isnan(self.low) else f", 95% interval {self.low:+.2f} to {self.high:+.2f}"
        p = "p < 0.001" if self.p < 0.001 else f"p {self.p:.3f}"
        return f"{self.value:+.2f} ({p}{ends})".replace("-", "\N{MINUS SIGN}")


def pearson(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Pearson's coefficient of two variables [units] or [units, K], over all their values.

    A unit's K values come from one thing, such as a model that was evaluated on K sets: they are
    permuted and drawn together. p is by permutation of the units, exact for eight or fewer.
    """
    # -1 in place of the product would be no number where there are no units.
    x, y = (v.reshape(len(v), math.prod(v.shape[1:])).astype(float) for v in (x, y))
    units, nothing = len(x), math.nan
    everything = np.arange(units)

    def coefficients(of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
        """[B] from the units [B, units], or [units], of each variable."""
        a, b = (v[k].reshape(*k.shape[:-1], -1) for v, k in ((x, of_x), (y, of_y)))
        a, b = (values - values.mean(axis=-1, keepdims=True) for values in (a, b))
        norm = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
        product = (a * b).sum(axis=-1)
        return np.divide(product, norm, np.full_like(product, nothing), where=norm > 0)

    known = np.isfinite(x).all() and np.isfinite(y).all()
    varies = all(np.ptp(v) > 1e-12 * np.abs(v).max() for v in (x, y)) if known and x.size else False
    if units < 2 or x.size < FEWEST or not varies:
        return Correlation(units, nothing, nothing, nothing, nothing)
    value = float(coefficients(everything, everything))
    shuffled = coefficients(everything, _orders(units))
    close = 1e-12  # coefficients that are equal but for rounding
    tails = (shuffled <= value + close).sum(), (shuffled >= value - close).sum()
    is_exact = units <= EXACT
    p = min(1.0, 2 * (min(tails) + (not is_exact)) / (len(shuffled) + (not is_exact)))
    ends = nothing, nothing
    if units >= FOR_AN_INTERVAL:
        drawn = np.random.default_rng(0).integers(0, units, (RESAMPLES, units))
        ends = bootstrap.interval(coefficients(drawn, drawn))
    return Correlation(units, value, p, *map(float, ends))


def spearman(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's rank coefficient, as `pearson`."""
    ranks = (pandas.Series(values.ravel()).rank().to_numpy() for values in (x, y))
    return pearson(*(values.reshape(x.shape) for values in ranks))


def _orders(units: int) -> np.ndarray:
    """Permutations [P, units]: all of them, or `RANDOM` ones of many units."""
    if units <= EXACT:
        return np.array(list(itertools.permutations(range(units))))
    rng = np.random.default_rng(0)
    return rng.permuted(np.tile(np.arange(units), (RANDOM, 1)), axis=1)
