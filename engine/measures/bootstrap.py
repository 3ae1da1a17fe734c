"""A joint bootstrap, from which every interval and comparison is derived.

Models see the same images, and sets hold copies of the same source images. All are drawn together,
so that RI, mRI and differences are plain arithmetic on the draws, and paired. The population is
source images like these: all images made from a source are drawn together. The sets, the
pre-trained model and the trainings are fixed; what training seeds add is in `seeds`.

It is a Poisson bootstrap (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams"):
each draw weights each source by an independent Poisson number of mean 1, and a mean is a ratio of
two weighted sums. Its variance is that of drawing with replacement. How often a source comes up
follows from its name alone, so that statistics of any sets are paired, whichever are drawn first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy import special  # `scipy.stats` takes a second to import

DRAWS = 4000  # the ends of an interval are then known to about a hundredth of its width
LEVEL = 0.95
TOGETHER = 2048  # sources whose counts are converted to floats at a time
# A count for each 16 random bits, by the distribution function of a Poisson number of mean 1.
_UNIFORM = (np.arange(1 << 16) + 0.5) / (1 << 16)
_COUNT = np.searchsorted(special.pdtr(np.arange(20), 1), _UNIFORM).astype(np.uint8)


def counts(sources: Sequence[object] | np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """uint8 [sources, draws]: how often each source comes up in each draw."""
    words = np.empty((len(sources), -(-draws // 4)), np.uint64)
    for row, source in zip(words, sources, strict=True):
        # The 0 is a seed, the same everywhere: draws depend on the name alone.
        key = hashlib.blake2b(f"0 {source}".encode(), digest_size=16).digest()
        row[:] = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(len(row))
    return _COUNT[words.view(np.uint16)[:, :draws]]


def means(counts: np.ndarray, total: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Draws (float32 [draws, K]) of the mean of K columns over the images of a set.

    counts [sources, draws]: `counts` of the set's sources. total [sources] is the weight of each
    source's images, and `sums` [sources, K] is a column's sum over them. A draw without any of the
    set's images is replaced by all of them.
    """
    columns = np.column_stack([sums, total]).astype(np.float32)
    totals = np.zeros((counts.shape[1], columns.shape[1]), np.float32)
    for start in range(0, len(columns), TOGETHER):
        part = slice(start, start + TOGETHER)
        totals += counts[part].T.astype(np.float32) @ columns[part]
    totals[totals[:, -1] == 0] = columns.sum(axis=0)
    return totals[:, :-1] / totals[:, -1:]


def interval(samples: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Both ends [2, ...] of the percentile interval of draws [B, ...]; NaN draws are left out."""
    quantile = np.nanquantile if np.isnan(samples).any() else np.quantile
    return quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
