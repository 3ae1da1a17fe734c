"""The error over training seeds, and the intervals that it widens.

A few seeds estimate their variance badly: with two, the estimate is below 0.1 times the truth in a
quarter of cases, and a test that uses it finds differences between equal methods. Methods of one
grid are trained alike, so variance is pooled over the rows that train, and a number uses the larger
of its own and the pooled variance, with the degrees of freedom of the pool. Variances over images
and over seeds add up, with the degrees of freedom of Satterthwaite (1946). bench/README.md reports
the coverage, measured by `bench/simulated_seeds.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas
from scipy import sparse, special

from engine.measures.bootstrap import LEVEL

ROUNDING = 1e-5  # points by which equal draws can differ


class SeedError(NamedTuple):
    """The variance over seeds of K numbers [K], 0 if there is none, and its degrees of freedom
    [K]."""

    variance: np.ndarray
    freedom: np.ndarray


def none(count: int) -> SeedError:
    """For `count` numbers of a single seed."""
    return SeedError(np.zeros(count), np.ones(count))


def of_mean(by_seed: np.ndarray) -> SeedError:
    """For the means [K] over seeds of numbers [S, K], each separately."""
    seeds, count = by_seed.shape
    if seeds == 1:
        return none(count)
    return SeedError(by_seed.var(axis=0, ddof=1) / seeds, np.full(count, seeds - 1.0))


def of_replicates(
    change: np.ndarray, replicated: np.ndarray, columns: np.ndarray, weights: sparse.csc_array
) -> SeedError:
    """For K weighted means of the cells of a grid with one seed, from columns that were trained
    twice.

    change [cells]: in accuracy, from the first training to the second. replicated: bool [cells],
    whether there was a second. columns: int [cells], -1 of pretrained models. weights [cells, K].
    Trainings of columns are assumed independent and equally variable: half the square of a mean's
    change in its replicated columns is scaled by the ratio of the squared weights of all columns
    and of these. NaN if no replicated column has weight.
    """
    squares, squares_twice, moved, twice = np.zeros((4, len(weights.indptr) - 1))
    by_cell = weights.tocsr()
    for column in range(columns.max() + 1):
        of_column = columns == column
        squares += abs(by_cell[of_column]).sum(axis=0) ** 2
        again = by_cell[of_column & replicated]
        counted = abs(again).sum(axis=0)
        squares_twice += counted**2
        twice += counted > 0
        moved += (change[of_column & replicated] @ again) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = squares / squares_twice * moved / 2
    return SeedError(variance, np.maximum(twice, 1))


def moderated(
    own: SeedError, groups: pandas.Series, varies: np.ndarray, trains: np.ndarray, *, of_pairs: bool
) -> SeedError:
    """The larger of each variance and its group's mean variance.

    groups [K]. varies, trains: bool [K], whether the number depends on the seed, and whether it
    belongs to rows that are trained and not mixes, which share their members' seeds; the mean is
    over these if a group has any. of_pairs: whether numbers are differences of two rows.
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
    """Bounds [2, K] of intervals over images, widened by seeds: the distance of each side
    represents the deviation over images (as in Zou and Donner 2008). NaN if the variance over seeds
    is."""
    quantile = (1 + level) / 2
    over_images = ((ends - values) / special.ndtri(quantile)) ** 2
    total = over_images + seeds.variance
    half = np.sqrt(total) * special.stdtrit(_freedom(total, seeds), quantile)
    return np.where(seeds.variance == 0, ends, values + np.array([[-1], [1]]) * half)


def _freedom(total: np.ndarray, seeds: SeedError) -> np.ndarray:
    """Satterthwaite's degrees of freedom of the total variance, taking the variance over images as
    known; practically infinite without variance over seeds."""
    share = seeds.variance / np.maximum(total, 1e-300)
    return np.minimum(seeds.freedom / np.maximum(share, 1e-9) ** 2, 1e12)
