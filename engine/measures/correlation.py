"""Correlations over few units: exact p, and an interval only with enough units."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas

from engine.measures import bootstrap

FEWEST = 3  # values for a coefficient
FOR_A_TEST = 5  # units: over four, the exact two-sided p is at least 2/4! = 0.083
FOR_AN_INTERVAL = 10  # a bootstrap over fewer repeats the same few units
EXACT = 8  # units of which all permutations are taken (40,320)
RANDOM = 9_999  # random permutations for more units
RESAMPLES = 4000


@dataclass(frozen=True)
class Correlation:
    """A coefficient over `units`, its two-sided p, and the bounds of its 95% interval. The
    coefficient is NaN if a variable does not vary or there is one unit; the bounds are NaN if there
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
    """Spearman's coefficient of two variables [units], or [units, G] within each of G groups.

    Values are ranked and centered within each group, and the coefficient is over the ranks of all
    groups, so differences between groups do not count. NaN marks missing values. A unit's values
    are permuted and drawn together, because they belong to the same unit. p is from permutations of
    the units, exact for up to eight.
    """
    units, rng = len(x), np.random.default_rng(0)
    x, y = (np.asarray(v, dtype=float).reshape(units, max(1, v[:1].size)) for v in (x, y))
    known = ~np.isnan(x + y)
    if units < 2 or known.sum() < FEWEST:
        return Correlation(units)
    x, y = (_centred_ranks(v, known) for v in (x, y))
    if not (x.any() and y.any()):
        return Correlation(units)
    if units <= EXACT:
        orders = np.array(list(itertools.permutations(range(units))))
    else:
        orders = rng.permuted(np.tile(np.arange(units), (RANDOM, 1)), axis=1)
    value = float(_of_orders(x, y, known, np.arange(units)[None])[0])
    shuffled = _of_orders(x, y, known, orders)
    close = 1e-12  # coefficients equal up to rounding
    tails = (shuffled <= value + close).sum(), (shuffled >= value - close).sum()
    itself = units > EXACT  # the observed order counts as one of the random permutations
    p = float(min(1.0, 2 * (min(tails) + itself) / (len(orders) + itself)))
    if units < FOR_AN_INTERVAL:
        return Correlation(units, value, p)
    drawn = np.random.default_rng(0).integers(0, units, (RESAMPLES, units))
    times = (drawn[:, :, None] == np.arange(units)).sum(axis=1)
    ends = bootstrap.interval(_of_draws(x, y, known, times))
    return Correlation(units, value, p, *ends.tolist())


def _centred_ranks(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Each column's ranks minus their mean [units, G]; 0 for missing values."""
    ranks = pandas.DataFrame(np.where(known, values, np.nan)).rank()
    return (ranks - ranks.mean()).fillna(0).to_numpy()


def _of_orders(x: np.ndarray, y: np.ndarray, known: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """The coefficient of x with y's units in each order [orders, units], over values that both
    have.
    Groups that lack a unit make it slightly more variable, so p is slightly larger."""
    here, rows = known.astype(float), np.arange(len(x))
    products, of_x, of_y = (a @ b.T for a, b in ((x, y), (x**2, here), (here, y**2)))
    covariance, xx, yy = (v[rows, orders].sum(axis=1) for v in (products, of_x, of_y))
    with np.errstate(invalid="ignore"):
        return covariance / np.sqrt(xx * yy)


def _of_draws(x: np.ndarray, y: np.ndarray, known: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The coefficient with each unit weighted by `times` [draws, units]; NaN if a variable then
    does not vary."""
    n = np.maximum(times @ known, 1)

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (times @ (a * b) - (times @ a) * (times @ b) / n).sum(axis=1)

    with np.errstate(invalid="ignore"):
        return product(x, y) / np.sqrt(product(x, x) * product(y, y))
