"""Correlations of few units: an exact p, and an interval only where there are enough units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from engine.measures import bootstrap

FEWEST = 3  # values for a coefficient
FOR_AN_INTERVAL = 10  # a bootstrap over fewer repeats the same few units
EXACT, RANDOM = 50_000, 9_999  # permutations: of eight units there are 40,320, so p is exact
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
    x, y = (values.reshape(len(values), -1).astype(float) for values in (x, y))
    units, nothing = len(x), math.nan
    everything = np.arange(units)

    def coefficients(of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
        """[B] from the units [B, units] of each variable."""
        a, b = (v[k].reshape(*k.shape[:-1], -1) for v, k in ((x, of_x), (y, of_y)))
        a, b = (values - values.mean(axis=-1, keepdims=True) for values in (a, b))
        norm = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
        product = (a * b).sum(axis=-1)
        return np.divide(product, norm, np.full_like(product, nothing), where=norm > 0)

    known = np.isfinite(x).all() and np.isfinite(y).all()
    varies = all(np.ptp(v) > 1e-12 * np.abs(v).max() for v in (x, y)) if known and x.size else False
    if units < 2 or x.size < FEWEST or not varies:
        return Correlation(units, nothing, nothing, nothing, nothing)
    test = stats.permutation_test(
        (everything,),
        lambda order, axis: coefficients(np.broadcast_to(everything, order.shape), order),
        permutation_type="pairings",
        n_resamples=EXACT if units <= 8 else RANDOM,
        batch=1000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    ends = nothing, nothing
    if units >= FOR_AN_INTERVAL:
        drawn = np.random.default_rng(0).integers(0, units, (RESAMPLES, units))
        ends = bootstrap.interval(coefficients(drawn, drawn))
    return Correlation(units, float(test.statistic), float(test.pvalue), *map(float, ends))


def spearman(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's rank coefficient, as `pearson`."""
    return pearson(*(stats.rankdata(values).reshape(values.shape) for values in (x, y)))
