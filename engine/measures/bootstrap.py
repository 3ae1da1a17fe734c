"""One joint bootstrap, from which every interval and comparison is derived.

Accuracies of a grid are far from independent: models see the same images, sets hold copies of the
same source images, and a training seed is shared by methods. All of it is drawn together; RI, mRI
and differences are then plain arithmetic on the draws, and stay paired.

The population meant: source images like these (all images made from one source are one draw) and,
where cells were trained with several seeds, training runs like these. The sets, the classes and
the pre-trained model are taken as given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.measures import parallel
from engine.measures.predictions import Bank

LEVEL = 0.95
TOGETHER = 128  # draws that share a generator, so that others beside them change nothing
WIDENED = 4096  # sources whose counts are floats at a time, since a product wants both alike
IN_CACHE = 1 << 17  # counts that are compared with the whole distribution, before the next
RARE = 50  # sources; a stratum of n shrinks deviations by sqrt(1 - 1/n), so small ones are pooled
POISSON = np.array([1 / math.factorial(k) for k in range(24)])  # times rate**k / e**rate


def means(
    banks: Mapping[str, Bank[Any]],
    columns: Mapping[str, np.ndarray],
    *,
    resamples: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Draws [resamples, K] of K means over the images of each set (float64).

    `columns[name]` [seeds, sources, K] are sums per source, in the rows of `banks[name]`; a mean is
    their sum over the weight of the set's images, averaged over training seeds. Draw b is the same
    draw of sources and of seeds for all sets, and however many are asked for.

    Sources are drawn with replacement. Those that occur in the same sets form a stratum and are
    drawn on their own; what occurs in sets that fewer than `RARE` sources share is one stratum
    together. A draw that has none of a set's images counts each of them once.
    """
    seeds = {column.shape[0] for column in columns.values()}
    assert len(seeds) == 1, seeds
    used = {name: banks[name] for name in columns}
    block = _blocks(used, resamples=resamples, seeds=seeds.pop(), seed=seed)

    def drawn(start: int) -> list[np.ndarray]:
        draws = block(start)
        return [
            draws.over_seeds([mean(one) for one in columns[name]])
            for name in used
            for mean in [draws.on(name)]
        ]

    found = parallel.each(drawn, range(0, resamples, TOGETHER))
    return {name: np.concatenate([one[k] for one in found]) for k, name in enumerate(used)}


@dataclass(frozen=True)
class Draws:
    """B draws of the sources of some sets, and of S seeds: statistics on the same draws are paired.

    counts: uint8 [B, sources], how often each comes up, stratum after stratum; places: by set, its
    rows in the order of those sources, and where among them they are; weights: float64 [B, S] of
    the seeds. How they are drawn: `means`.
    """

    banks: Mapping[str, Bank[Any]]
    places: Mapping[str, tuple[np.ndarray, np.ndarray]]
    counts: np.ndarray
    weights: np.ndarray

    def on(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """What takes sums per source [sources, K] of a set to draws [B, K] of K means (float64).

        Products are in the precision of the sums given: float32 is twice as fast and exact for
        integers; in float64 what should cancel does, to the digits that `p_value` looks at.
        """
        order, place = self.places[name]

        def sums(column: np.ndarray) -> np.ndarray:
            out = np.zeros((len(self.counts), column.shape[1]))
            for start in range(0, len(place), WIDENED):
                some = place[start : start + WIDENED]  # ascending: a run needs no gathering
                run = some[-1] - some[0] == len(some) - 1
                counts = self.counts[:, slice(some[0], some[-1] + 1) if run else some]
                out += counts.astype(column.dtype) @ column[order[start : start + WIDENED]]
            return out

        weight = self.banks[name].total[:, None]

        def mean(column: np.ndarray) -> np.ndarray:
            column = np.concatenate([column, weight.astype(column.dtype)], axis=1)
            found = sums(column)
            found[found[:, -1] == 0] = column.sum(axis=0)
            return found[:, :-1] / found[:, -1:]

        return mean

    def first(self, count: int) -> Draws:
        """The first draws of them."""
        return replace(self, counts=self.counts[:count], weights=self.weights[:count])

    def over_seeds(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[B, ...] mean over seeds of values [B, ...], one array a seed."""
        if len(values) == 1:
            return values[0]
        return np.einsum("bs,sb...->b...", self.weights, np.stack(values))


def draw(banks: Mapping[str, Bank[Any]], *, resamples: int, seeds: int, seed: int) -> Draws:
    """As many draws as asked for, kept: a byte for each of them and each source."""
    block = _blocks(banks, resamples=resamples, seeds=seeds, seed=seed)
    parts = parallel.each(block, range(0, resamples, TOGETHER))
    return replace(
        parts[0],
        counts=np.concatenate([part.counts for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
    )


def _blocks(
    banks: Mapping[str, Bank[Any]], *, resamples: int, seeds: int, seed: int
) -> Callable[[int], Draws]:
    """What makes the draws from a multiple of `TOGETHER` on, as many as it or as are left."""
    sources = np.unique(np.concatenate([bank.sources for bank in banks.values()]))
    rows = {name: np.searchsorted(sources, bank.sources) for name, bank in banks.items()}
    member = np.zeros((len(sources), len(rows)), bool)
    for j, name in enumerate(rows):
        member[rows[name], j] = True
    stratum = _strata(member)
    place = np.empty(len(sources), np.int64)
    place[np.argsort(stratum, kind="stable")] = np.arange(len(sources))
    places = {
        name: (order, place[mine][order])
        for name, mine in rows.items()
        for order in [np.argsort(place[mine])]
    }
    sizes = np.bincount(stratum).tolist()

    def block(start: int) -> Draws:
        rng, other = (np.random.Generator(np.random.SFC64([seed, start, k])) for k in (0, 1))
        weights = _seed_weights(other, TOGETHER, seeds)
        counts = np.concatenate([_draw(rng, TOGETHER, size) for size in sizes], axis=1)
        count = min(TOGETHER, resamples - start)
        return Draws(banks, places, counts[:count], weights[:count])

    return block


def half_width(samples: np.ndarray) -> float:
    """Half the width of the percentile interval of samples [B]."""
    low, high = interval(samples)
    return (high - low) / 2


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Ends of the middle 95% of samples [B]: the percentile interval."""
    low, high = np.quantile(samples, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def p_value(samples: np.ndarray) -> float:
    """Two-sided p of "the statistic is 0" from its samples [B]: the level at which the percentile
    interval just reaches 0. At least 2 / (B + 1), since B draws cannot tell less."""
    rounded = samples.round(9)  # a difference of 0 may have come out as 1e-15
    tail = min(int((rounded <= 0).sum()), int((rounded >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(samples) + 1))


def _seed_weights(rng: np.random.Generator, rows: int, seeds: int) -> np.ndarray:
    """(rows, seeds) weights of the seeds, which add up to 1 in each row.

    Drawing five seeds with replacement makes intervals too narrow, so the weights are normal
    deviates over a chi: for any numbers x, one a seed, the weighted sum is distributed as
    mean(x) + std(x) / sqrt(seeds) * t with seeds - 1 degrees of freedom. Where seeds are all that
    varies, the interval is therefore Student's.
    """
    if seeds == 1:
        return np.ones((rows, 1))
    deviates = rng.standard_normal((rows, seeds))
    deviates -= deviates.mean(axis=1, keepdims=True)
    chi = np.sqrt(rng.chisquare(seeds - 1, (rows, 1)) / (seeds - 1))
    return 1 / seeds + deviates / (chi * np.sqrt(seeds * (seeds - 1)))


def _strata(member: np.ndarray) -> np.ndarray:
    """(sources,) number of each one's stratum from which sets (sources, sets) it occurs in."""
    _, pattern, size = np.unique(member, axis=0, return_inverse=True, return_counts=True)
    pooled = np.where(size < RARE, len(size), np.arange(len(size)))[pattern.ravel()]
    return np.unique(pooled, return_inverse=True)[1]


def _draw(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """uint8 (rows, size) how often each of `size` sources comes up in `size` draws.

    Poisson counts are multinomial given their sum, and are made far faster than draws are counted.
    So all but some 6 sqrt(size) of a row's draws are made as such counts, and the rest one by one.
    """
    rate = max(0.0, 1 - 6 / math.sqrt(size))
    counts = _poisson(rng, rate, (rows, size))
    left = size - counts.sum(axis=1, dtype=np.int64)
    while (over := left < 0).any():  # once in some 1e9 rows; any sum will do
        counts[over] = _poisson(rng, rate, (int(over.sum()), size))
        left = size - counts.sum(axis=1, dtype=np.int64)
    at = np.repeat(size * np.arange(rows), left) + rng.integers(size, size=left.sum())
    np.add.at(counts.reshape(-1), at, np.uint8(1))
    return counts


def _poisson(rng: np.random.Generator, rate: float, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [shape] Poisson counts of a rate of at most 1.

    16 random bits tell most of them, by comparison with the distribution in steps of 2^-16; what
    such steps leave of it is drawn by itself.
    """
    if not rate:
        return np.zeros(shape, np.uint8)
    chances = 2**16 * np.exp(-rate) * rate ** np.arange(len(POISSON)) * POISSON
    steps = np.floor(chances)
    ends = np.cumsum(steps[steps > 0]).astype(np.uint16)
    words = rng.integers(2**64, size=-(-math.prod(shape) // 4), dtype=np.uint64)
    bits = words.view(np.uint16)[: math.prod(shape)]
    counts = np.zeros(len(bits), np.uint8)
    for some in range(0, len(bits), IN_CACHE):
        part, found = bits[some : some + IN_CACHE], counts[some : some + IN_CACHE]
        for end in ends:
            found += (part >= end).view(np.uint8)
    rare = np.flatnonzero(counts == len(ends))
    rest = chances - steps
    counts[rare] = rng.choice(len(rest), size=len(rare), p=rest / rest.sum())
    return counts.reshape(shape)
