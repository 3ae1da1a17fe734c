"""One joint bootstrap, from which every interval and comparison is derived.

Accuracies of a grid are far from independent: models see the same images, sets hold copies of the
same source images, and a training seed is shared by methods. All of it is drawn together; RI, mRI
and differences are then plain arithmetic on the draws, and stay paired.

The population meant: source images like these (all images made from one source are one draw) and,
where cells were trained with several seeds, training runs like these. The sets, the classes and
the pre-trained model are taken as given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.measures.predictions import Bank

LEVEL = 0.95
DRAWS_PER_CHUNK = 1 << 21  # few enough that memory is used again, not mapped anew
RARE = 50  # sources; a stratum of n shrinks deviations by sqrt(1 - 1/n), so small ones are pooled


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
    draw of sources and of seeds for all sets.

    Sources are drawn with replacement. Those that occur in the same sets form a stratum and are
    drawn on their own; what occurs in sets that fewer than `RARE` sources share is one stratum
    together. A draw that has none of a set's images counts each of them once.
    """
    seeds = {column.shape[0] for column in columns.values()}
    assert len(seeds) == 1, seeds
    used = {name: banks[name] for name in columns}
    chunks = _chunks(used, resamples=resamples, seeds=seeds.pop(), seed=seed)
    found = [
        {
            name: draws.over_seeds([mean(one) for one in columns[name]])
            for name in used
            for mean in [draws.on(name)]
        }
        for draws in chunks
    ]
    return {name: np.concatenate([one[name] for one in found]) for name in used}


@dataclass(frozen=True)
class Draws:
    """B draws of the sources of some sets, and of S seeds: statistics on the same draws are paired.

    counts: uint8 [B, sources], how often each comes up; rows: those of each set; weights: float64
    [B, S] of the seeds. How they are drawn: `means`.
    """

    banks: Mapping[str, Bank[Any]]
    rows: Mapping[str, np.ndarray]
    counts: np.ndarray
    weights: np.ndarray

    def on(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """What takes sums per source [sources, K] of a set to draws [B, K] of K means."""
        drawn = self.counts[:, self.rows[name]].astype(np.float64)
        total = drawn @ self.banks[name].total
        if (missed := total == 0).any():
            drawn[missed], total[missed] = 1, self.banks[name].total.sum()
        total = total[:, None]
        return lambda column: (drawn @ column) / total

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
    first, *others = _chunks(banks, resamples=resamples, seeds=seeds, seed=seed)
    parts = [first, *others]
    return replace(
        first,
        counts=np.concatenate([part.counts for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
    )


def _chunks(
    banks: Mapping[str, Bank[Any]], *, resamples: int, seeds: int, seed: int
) -> Iterator[Draws]:
    """The same draws, a part of them at a time."""
    sources = np.unique(np.concatenate([bank.sources for bank in banks.values()]))
    rows = {name: np.searchsorted(sources, bank.sources) for name, bank in banks.items()}
    member = np.zeros((len(sources), len(rows)), bool)
    for j, name in enumerate(rows):
        member[rows[name], j] = True
    stratum = _strata(member)
    strata = [np.flatnonzero(stratum == value) for value in range(stratum.max() + 1)]
    weights = _seed_weights(np.random.default_rng([seed, 1]), resamples, seeds)
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_PER_CHUNK // len(sources))
    for start in range(0, resamples, step):
        some = weights[start : start + step]
        counts = np.empty((len(some), len(sources)), np.uint8)
        for members in strata:
            counts[:, members] = _draw(rng, len(some), len(members))
        yield Draws(banks, rows, counts, some)


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
    """(rows, size) how often each of `size` sources comes up in `size` draws."""
    drawn = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
