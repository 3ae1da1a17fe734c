"""One joint bootstrap, from which every interval and comparison is derived.

Accuracies of a grid are far from independent: models see the same images, sets hold copies of the
same source images, and a training seed is shared by methods. All of it is drawn together; RI, mRI
and differences are then plain arithmetic on the draws, and stay paired.

The population meant: source images like these (all images made from one source are one draw) and,
where cells were trained with several seeds, training runs like these. The sets, the classes and
the pre-trained model are taken as given.

It is a Poisson bootstrap (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams"):
in a draw each source counts as often as a Poisson number of mean 1 says, independently of the
others, and a mean is a ratio of two such sums. Its variance is that of drawing with replacement,
and sets may share sources in any pattern.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from engine.measures import parallel
from engine.measures.predictions import Bank

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
COUNTS, TOGETHER = 1 << 20, 4096  # counts, and draws, at most of which share a generator
WIDENED = 4096  # sources whose counts are floats at a time, since a product wants both alike
CERTAIN = 4.0  # standard errors of a p that its draws are taken to stay within
_POISSON = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(8)])
STEPS = np.round(2**16 * _POISSON).astype(np.uint16)  # 16 random bits at or above: one more


def means(
    banks: Mapping[str, Bank[Any]],
    columns: Mapping[str, np.ndarray],
    *,
    resamples: int,
    seed: int,
    start: int = 0,
) -> dict[str, np.ndarray]:
    """Draws [resamples - start, K], from number `start` on, of K means over the images of each set
    (float64).

    `columns[name]` [seeds, sources, K] are sums per source, in the rows of `banks[name]`; a mean is
    their sum over the weight of the set's images, averaged over training seeds. Draw b is the same
    draw of sources and of seeds for all sets, and however many are asked for. A draw that has none
    of a set's images counts each of them once.
    """
    seeds = {column.shape[0] for column in columns.values()}
    assert len(seeds) == 1, seeds
    source = _Source({name: banks[name] for name in columns}, seeds.pop(), seed)

    def block(first: int) -> list[np.ndarray]:
        draws = source.draws(max(first, start), min(first + source.together, resamples))
        return [
            draws.over_seeds([draws.mean(name, sums) for sums in columns[name]]) for name in columns
        ]

    blocks = parallel.each(block, source.blocks(start, resamples))
    return {name: np.concatenate([part[k] for part in blocks]) for k, name in enumerate(columns)}


@dataclass(frozen=True)
class Draws:
    """B draws of the sources of some sets, and of S seeds: statistics on the same draws are paired.

    counts: uint8 [B, sources], how often each comes up; sets: of each set, the columns of its
    sources and the weight of their images; weights: float64 [B, S] of the seeds.
    """

    sets: Mapping[str, tuple[np.ndarray, np.ndarray]]
    counts: np.ndarray
    weights: np.ndarray

    def mean(self, name: str, sums: np.ndarray) -> np.ndarray:
        """Draws [B, K] of K means (float64) from sums per source [sources, K] of a set.

        Products are in the precision of the sums given: float32 is twice as fast and exact for
        integers; in float64 what should cancel does, to the digits that `tail` looks at.
        """
        places, weight = self.sets[name]
        columns = np.concatenate([sums, weight[:, None].astype(sums.dtype)], axis=1)
        drawn = np.zeros((len(self.counts), columns.shape[1]))
        for start in range(0, len(places), WIDENED):
            some = slice(start, start + WIDENED)
            drawn += self.counts[:, places[some]].astype(columns.dtype) @ columns[some]
        drawn[drawn[:, -1] == 0] = columns.sum(axis=0)
        return drawn[:, :-1] / drawn[:, -1:]

    def first(self, count: int) -> Draws:
        """The first draws of them."""
        return replace(self, counts=self.counts[:count], weights=self.weights[:count])

    def over_seeds(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[B, ...] mean over seeds of values [B, ...], one array a seed."""
        if len(values) == 1:
            return values[0]
        return np.einsum("bs,sb...->b...", self.weights, np.stack(values))


def draw(banks: Mapping[str, Bank[Any]], *, resamples: int, seeds: int, seed: int) -> Draws:
    """As many draws as asked for, in memory: a byte for each of them and each source."""
    source = _Source(banks, seeds, seed)
    parts = parallel.each(
        lambda first: source.draws(first, min(first + source.together, resamples)),
        source.blocks(0, resamples),
    )
    return replace(
        parts[0],
        counts=np.concatenate([part.counts for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
    )


class _Source:
    """Makes draws by their number, in blocks that share a generator."""

    def __init__(self, banks: Mapping[str, Bank[Any]], seeds: int, seed: int) -> None:
        sources = np.unique(np.concatenate([bank.sources for bank in banks.values()]))
        self.sets = {
            name: (np.searchsorted(sources, bank.sources), bank.total)
            for name, bank in banks.items()
        }
        self.sources, self.seeds, self.seed = len(sources), seeds, seed
        self.together = min(TOGETHER, max(32, COUNTS // self.sources))

    def blocks(self, start: int, stop: int) -> range:
        """Where the blocks begin that hold draws `start` to `stop`."""
        return range(start - start % self.together, stop, self.together)

    def draws(self, start: int, stop: int) -> Draws:
        """Draws `start` to `stop`, which lie in one block."""
        first = start - start % self.together
        some = slice(start - first, stop - first)
        bits, other = (np.random.SFC64([self.seed, first, k]) for k in (0, 1))
        words = bits.random_raw(-(-self.together * self.sources // 4)).view(np.uint16)
        words = words[: self.together * self.sources].reshape(self.together, self.sources)[some]
        counts = np.zeros(words.shape, np.uint8)
        for step in STEPS:
            counts += words >= step
        weights = _seed_weights(np.random.Generator(other), self.together, self.seeds)
        return Draws(self.sets, counts, weights[some])


def until(
    draw: Callable[[int, int], np.ndarray],
    enough: Callable[[np.ndarray], bool],
    *,
    first: int,
    most: int,
) -> np.ndarray:
    """Draws [B, ...] of `draw(start, stop)`: twice as many as before until there are `enough`, but
    not more than `most`."""
    samples = draw(0, first)
    while not enough(samples) and len(samples) < most:
        more = draw(len(samples), min(2 * len(samples), most))
        samples = np.concatenate([samples, more])
    return samples


class Ends(NamedTuple):
    """The middle 95% of some draws (the percentile interval), and the Monte-Carlo standard error of
    its ends, the larger of the two: what as many other draws would change."""

    low: float
    high: float
    error: float


def ends(samples: np.ndarray) -> Ends:
    """The percentile interval of samples [B].

    The rank of an end is binomial, so its error is half the distance between the samples a standard
    deviation of that rank below and above.
    """
    ordered = np.sort(samples)

    def at(level: float) -> float:
        """As NumPy's `quantile`, whose time is not the sorting but what is around it."""
        rank = min(max(level, 0.0), 1.0) * (len(ordered) - 1)
        below = ordered[int(rank)]
        return float(below + (rank % 1) * (ordered[math.ceil(rank)] - below))

    step = math.sqrt(TAIL * (1 - TAIL) / len(ordered))
    errors = [(at(level + step) - at(level - step)) / 2 for level in (TAIL, 1 - TAIL)]
    return Ends(at(TAIL), at(1 - TAIL), max(errors))


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The ends alone of `ends`."""
    return ends(samples)[:2]


def half_width(samples: np.ndarray) -> float:
    """Half the width of the percentile interval of samples [B]."""
    low, high = interval(samples)
    return (high - low) / 2


class Chance(NamedTuple):
    """A p-value (or an array of them), and its Monte-Carlo standard error: 0 if it is exact."""

    p: Any
    error: Any


def tails(samples: np.ndarray) -> np.ndarray:
    """How many of samples [B, ...] are at most, and at least, 0: int64 [2, ...]."""
    rounded = samples.round(9)  # a difference of 0 may have come out as 1e-15
    return np.stack([(rounded <= 0).sum(axis=0), (rounded >= 0).sum(axis=0)])


def p_value(counts: np.ndarray, draws: np.ndarray | int) -> Chance:
    """Two-sided p of "the statistic is 0" from the `tails` [2, ...] of its draws: the level at
    which the percentile interval just reaches 0. At least 2 / (draws + 1): they cannot tell less.

    The error is a quarter of the way to the upper end of Wilson's interval of `CERTAIN` standard
    errors, which is above 0 even where no draw lay in the tail.
    """
    share = (np.minimum(counts[0], counts[1]) + 1) / (np.asarray(draws) + 1)
    wide = CERTAIN**2 / draws
    middle = share + wide / 2
    high = (middle + np.sqrt(wide * (share * (1 - share) + wide / 4))) / (1 + wide)
    return Chance(np.minimum(1.0, 2 * share), 2 * (high - share) / CERTAIN)


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
