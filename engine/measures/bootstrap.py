"""A joint bootstrap, from which every interval and comparison is derived.

Accuracies of a grid depend on each other: models see the same images, sets hold copies of the same
source images, and methods share training seeds. All are drawn together, so that RI, mRI and
differences are plain arithmetic on the draws, and paired.

The population is source images like these (all images made from a source are drawn together) and,
where cells were trained with several seeds, training runs like these. The sets, the classes and
the pre-trained model are fixed.

It is a Poisson bootstrap (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams"):
each draw weights each source by an independent Poisson number of mean 1, and a mean is a ratio of
two weighted sums. Its variance is that of drawing with replacement, and sets may share sources in
any pattern.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from engine.measures import parallel
from engine.measures.predictions import SetPredictions

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
COUNTS, TOGETHER = 1 << 20, 4096  # the most counts, and the most draws, of a generator
WIDENED = 4096  # sources whose counts are converted to floats at a time
CERTAIN = 4.0  # an estimated p lies within this many standard errors of the true p
_POISSON = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(8)])
STEPS = np.round(2**16 * _POISSON).astype(np.uint16)  # a count: the steps up to 16 random bits


def means(
    by_set: Mapping[str, SetPredictions[Any]],
    columns: Mapping[str, np.ndarray],
    *,
    resamples: int,
    seed: int,
    start: int = 0,
) -> dict[str, np.ndarray]:
    """Draws [resamples - start, K], from number `start` on, of K means over the images of each set
    (float64).

    `columns[name]` [seeds, sources, K] are sums per source, in the rows of `by_set[name]`; a mean
    is their sum over the weight of the set's images, averaged over training seeds. Draw b is of the
    same sources and seeds in all sets, whatever `start` and `resamples` are. A draw without any of
    a set's images is replaced by all of them.
    """
    (seeds,) = {column.shape[0] for column in columns.values()}
    sampler = _Sampler({name: by_set[name] for name in columns}, seeds, seed, {})

    def block(first: int) -> list[np.ndarray]:
        draws = sampler.draws(max(first, start), min(first + sampler.together, resamples))
        return [
            draws.over_seeds([draws.mean(name, sums) for sums in columns[name]]) for name in columns
        ]

    blocks = parallel.each(block, sampler.blocks(start, resamples))
    return {name: np.concatenate([part[k] for part in blocks]) for k, name in enumerate(columns)}


@dataclass(frozen=True)
class Draws:
    """B draws of the sources of several sets, and of S seeds; statistics of the same draws are
    paired.

    counts: uint8 [B, sources], how often each was drawn; sets: for each set, the columns of its
    sources in `counts`, and the weight of their images; weights: float64 [B, S] of the seeds.
    """

    sets: Mapping[str, tuple[np.ndarray, np.ndarray]]
    counts: np.ndarray
    weights: np.ndarray

    def mean(self, name: str, sums: np.ndarray) -> np.ndarray:
        """Draws [B, K] of K means (float64) from sums per source [sources, K] of a set.

        Products have the precision of the sums: float32 is twice as fast and exact for integers;
        float64 keeps the digits of small differences that `tails` needs.
        """
        places, weight = self.sets[name]
        columns = np.concatenate([sums, weight[:, None].astype(sums.dtype)], axis=1)
        totals = np.zeros((len(self.counts), columns.shape[1]))
        for start in range(0, len(places), WIDENED):
            part = slice(start, start + WIDENED)
            totals += self.counts[:, places[part]].astype(columns.dtype) @ columns[part]
        totals[totals[:, -1] == 0] = columns.sum(axis=0)
        return totals[:, :-1] / totals[:, -1:]

    def first(self, count: int) -> Draws:
        """The first `count` draws."""
        return replace(self, counts=self.counts[:count], weights=self.weights[:count])

    def over_seeds(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[B, ...] mean over seeds of values [B, ...], one array a seed."""
        if len(values) == 1:
            return values[0]
        return np.einsum("bs,sb...->b...", self.weights, np.stack(values))


def draw(
    by_set: Mapping[str, SetPredictions[Any]],
    *,
    resamples: int,
    seeds: int,
    seed: int,
    beside: Mapping[str, SetPredictions[Any]] | None = None,
) -> Draws:
    """Draws that are held in memory: a byte for each draw and source.

    beside: sets whose sources are drawn too. Draws of sets without further sources are then those
    that `beside` has by itself, and are paired with them.
    """
    sampler = _Sampler(by_set, seeds, seed, beside or {})
    blocks = parallel.each(
        lambda first: sampler.draws(first, min(first + sampler.together, resamples)),
        sampler.blocks(0, resamples),
    )
    return replace(
        blocks[0],
        counts=np.concatenate([block.counts for block in blocks]),
        weights=np.concatenate([block.weights for block in blocks]),
    )


class _Sampler:
    """Makes draws by their number, in blocks that share a generator."""

    def __init__(
        self,
        by_set: Mapping[str, SetPredictions[Any]],
        seeds: int,
        seed: int,
        beside: Mapping[str, SetPredictions[Any]],
    ) -> None:
        drawn = [of_set.sources for of_set in (*by_set.values(), *beside.values())]
        sources = np.unique(np.concatenate(drawn))
        self.sets = {
            name: (np.searchsorted(sources, of_set.sources), of_set.total)
            for name, of_set in by_set.items()
        }
        self.sources, self.seeds, self.seed = len(sources), seeds, seed
        self.together = min(TOGETHER, max(32, COUNTS // self.sources))

    def blocks(self, start: int, stop: int) -> range:
        """The first draw of each block that holds draws `start` to `stop`."""
        return range(start - start % self.together, stop, self.together)

    def draws(self, start: int, stop: int) -> Draws:
        """Draws `start` to `stop` of one block."""
        first = start - start % self.together
        rows = slice(start - first, stop - first)
        for_counts, for_seeds = (np.random.SFC64([self.seed, first, k]) for k in (0, 1))
        words = for_counts.random_raw(-(-self.together * self.sources // 4)).view(np.uint16)
        words = words[: self.together * self.sources].reshape(self.together, self.sources)[rows]
        counts = np.zeros(words.shape, np.uint8)
        for step in STEPS:
            counts += words >= step
        weights = _seed_weights(np.random.Generator(for_seeds), self.together, self.seeds)
        return Draws(self.sets, counts, weights[rows])


class Ends(NamedTuple):
    """The percentile interval that holds the middle 95% of draws, and the larger Monte-Carlo
    standard error of its two ends."""

    low: float
    high: float
    error: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def ends(samples: np.ndarray, tail: float = TAIL) -> Ends:
    """The percentile interval of samples [B], which leaves the share `tail` out at either side.

    The rank of an end is binomial, so its error is half the distance between the samples a standard
    deviation of that rank below and above.
    """
    ordered = np.sort(samples)

    def at(level: float) -> float:
        """The quantile of the sorted samples, as `numpy.quantile` but much faster."""
        rank = min(max(level, 0.0), 1.0) * (len(ordered) - 1)
        below = ordered[int(rank)]
        return float(below + (rank % 1) * (ordered[math.ceil(rank)] - below))

    step = math.sqrt(tail * (1 - tail) / len(ordered))
    errors = [(at(level + step) - at(level - step)) / 2 for level in (tail, 1 - tail)]
    return Ends(at(tail), at(1 - tail), max(errors))


class PValue(NamedTuple):
    """A p-value (or an array of them) and its Monte-Carlo standard error."""

    p: Any
    error: Any


def tails(samples: np.ndarray) -> np.ndarray:
    """How many of samples [B, ...] are <= 0, and how many >= 0: int64 [2, ...]."""
    rounded = samples.round(9)  # rounding errors may turn a difference of 0 into 1e-15
    return np.stack([(rounded <= 0).sum(axis=0), (rounded >= 0).sum(axis=0)])


def p_value(counts: np.ndarray, draws: np.ndarray | int) -> PValue:
    """Two-sided p of "the statistic is 0" from the `tails` [2, ...] of its draws: the level at
    which the percentile interval just reaches 0. It is never below 2 / (draws + 1).

    The error is the distance to the upper end of Wilson's interval of `CERTAIN` standard errors,
    divided by `CERTAIN`: it is above 0 even where no draw lies in the tail.
    """
    share = (np.minimum(counts[0], counts[1]) + 1) / (np.asarray(draws) + 1)
    wide = CERTAIN**2 / draws
    middle = share + wide / 2
    high = (middle + np.sqrt(wide * (share * (1 - share) + wide / 4))) / (1 + wide)
    return PValue(np.minimum(1.0, 2 * share), 2 * (high - share) / CERTAIN)


def _seed_weights(rng: np.random.Generator, rows: int, seeds: int) -> np.ndarray:
    """[rows, seeds] weights of the seeds, which add up to 1 in each row.

    Drawing few seeds with replacement makes intervals too narrow, so the weights are normal
    deviates over a chi: for numbers x of the seeds, the weighted sum is distributed as
    mean(x) + std(x) / sqrt(seeds) * t with seeds - 1 degrees of freedom. If only seeds vary, the
    interval is Student's.
    """
    if seeds == 1:
        return np.ones((rows, 1))
    deviates = rng.standard_normal((rows, seeds))
    deviates -= deviates.mean(axis=1, keepdims=True)
    chi = np.sqrt(rng.chisquare(seeds - 1, (rows, 1)) / (seeds - 1))
    return 1 / seeds + deviates / (chi * np.sqrt(seeds * (seeds - 1)))
