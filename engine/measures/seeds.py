"""The error that training seeds add to a number, and the intervals and p-values that follow.

A few seeds tell their own variance badly: of two, it is 0.1 times the truth in a quarter of cases,
and a test that believes it finds differences between equal methods. Methods of one grid are trained
alike, so their variance is pooled over the rows that train, and a number has the larger of its own
and the pooled one, with the degrees of freedom of the pool. Variance over images and over seeds add
up, with the degrees of freedom of Satterthwaite (1946). docs/numbers.md has how often that holds,
by `tests/simulated_seeds.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas
from scipy import sparse, special

from engine.measures.bootstrap import LEVEL

ROUNDING = 1e-5  # points by which numbers of draws that are all the same can differ
LEAST_P = 1e-15  # a normal approximation does not know smaller ones


class SeedError(NamedTuple):
    """Of K numbers the variance over seeds [K], 0 where there is none, and its degrees of
    freedom [K]."""

    variance: np.ndarray
    freedom: np.ndarray


def none(count: int) -> SeedError:
    """Of so many numbers of a single seed."""
    return SeedError(np.zeros(count), np.ones(count))


def of_mean(by_seed: np.ndarray) -> SeedError:
    """Of the means [K] over seeds of numbers [S, K], each on its own."""
    seeds, count = by_seed.shape
    if seeds == 1:
        return none(count)
    return SeedError(by_seed.var(axis=0, ddof=1) / seeds, np.full(count, seeds - 1.0))


def of_probe(
    change: np.ndarray, probed: np.ndarray, columns: np.ndarray, weights: sparse.csc_array
) -> SeedError:
    """Of K weighted means of the cells of a grid of one seed, from columns that were trained twice.

    change [cells]: in accuracy, from the first training to the second. probed: bool [cells],
    whether there was a second. columns: int [cells], -1 of pre-trained models. weights [cells, K].
    The trainings of columns count as independent, and as equally variable: half the square of a
    mean's change in its probed columns is scaled by the squares of what all columns and these
    count in it. NaN where no probed column counts.
    """
    squares, squares_twice, moved, twice = np.zeros((4, len(weights.indptr) - 1))
    by_cell = weights.tocsr()
    for column in range(columns.max() + 1):
        of_column = columns == column
        squares += abs(by_cell[of_column]).sum(axis=0) ** 2
        again = by_cell[of_column & probed]
        counted = abs(again).sum(axis=0)
        squares_twice += counted**2
        twice += counted > 0
        moved += (change[of_column & probed] @ again) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = squares / squares_twice * moved / 2
    return SeedError(variance, np.maximum(twice, 1))


def moderated(
    own: SeedError, groups: pandas.Series, varies: np.ndarray, trains: np.ndarray, *, of_pairs: bool
) -> SeedError:
    """The larger of each variance and the mean of its group's.

    groups [K]. varies, trains: bool [K], whether the number is the same with every seed, and
    whether it is of rows that are trained and no mix of others, which share their members' seeds;
    of these, where a group has any, is the mean. of_pairs: of all differences of two rows.
    """
    pooled = pandas.Series(varies & trains)
    pooled |= varies & ~pooled.groupby(groups.to_numpy()).transform("any")
    by_group = pandas.Series(own.variance).where(pooled).groupby(groups.to_numpy())
    mean, count = by_group.transform("mean").to_numpy(), by_group.transform("count").to_numpy()
    rows_less_one = (np.sqrt(1 + 8 * count) - 1) / 2 if of_pairs else count - 1
    variance = np.where(varies, np.fmax(own.variance, mean), 0)
    return SeedError(variance, own.freedom * np.maximum(rows_less_one, 1))


def widened(
    values: np.ndarray, ends: np.ndarray, seeds: SeedError, level: float = LEVEL
) -> np.ndarray:
    """Both ends [2, K] of intervals over images, widened by seeds: each side's distance stands for
    the deviation over images (as in Zou and Donner 2008). NaN where the variance over seeds is."""
    quantile = (1 + level) / 2
    over_images = ((ends - values) / special.ndtri(quantile)) ** 2
    total = over_images + seeds.variance
    half = np.sqrt(total) * special.stdtrit(_freedom(total, seeds), quantile)
    return np.where(seeds.variance == 0, ends, values + np.array([[-1], [1]]) * half)


def tested(
    values: np.ndarray, over_images: np.ndarray, seeds: SeedError, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals [2, K] of differences, and two-sided p [K] of "the difference is 0", by one rule:
    p is below 1 - level exactly where 0 lies outside the interval.

    values [K]: the differences. over_images [K]: their variances over images. The statistic is
    Student's, and normal where there is no variance over seeds.
    """
    total = np.maximum(over_images + seeds.variance, ROUNDING**2)
    error, freedom = np.sqrt(total), _freedom(total, seeds)
    half = error * special.stdtrit(freedom, (1 + level) / 2)
    p = 2 * special.stdtr(freedom, -np.abs(values) / error)
    return np.stack([values - half, values + half]), np.maximum(p, LEAST_P)


def _freedom(total: np.ndarray, seeds: SeedError) -> np.ndarray:
    """Satterthwaite's degrees of freedom of the total variance, of which that over images counts as
    known; so many that Student's is normal where seeds have no part in it."""
    share = seeds.variance / np.maximum(total, 1e-300)
    return np.minimum(seeds.freedom / np.maximum(share, 1e-9) ** 2, 1e12)
