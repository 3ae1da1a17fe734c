"""A joint bootstrap over source images, the basis of all intervals and comparisons.

Models see the same images, and datasets contain copies of the same source images. All are drawn
together, so RI, mRI and differences are computed on the draws and are paired. The population is
source images like these. Datasets, pretrained model and trainings are fixed; `seeds` adds the
variance over training seeds.

It is a Poisson bootstrap (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams"):
each draw weights each source by an independent Poisson number of mean 1, and a mean is a ratio of
two weighted sums. Its variance equals that of drawing with replacement. A source's weight depends
on its name only, so statistics of all datasets are paired in any order of drawing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy import special  # `scipy.stats` takes a second to import

DRAWS = 4000  # the standard error of a bound is then about a hundredth of the interval's width
LEVEL = 0.95
SIGNIFICANT = 0.05  # of p
NEAR = 5.0  # percent from 0 or 100
TOGETHER = 2048  # sources converted to floats at a time
# Maps 16 random bits to a count, by the distribution function of a Poisson number of mean 1.
_UNIFORM = (np.arange(1 << 16) + 0.5) / (1 << 16)
_COUNT = np.searchsorted(special.pdtr(np.arange(20), 1), _UNIFORM).astype(np.uint8)


def counts(sources: Sequence[object] | np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """uint8 [sources, draws]: the weight of each source in each draw."""
    words = np.empty((len(sources), -(-draws // 4)), np.uint64)
    for row, source in zip(words, sources, strict=True):
        # The seed is always 0, so draws depend on the name only.
        key = hashlib.blake2b(f"0 {source}".encode(), digest_size=16).digest()
        row[:] = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(len(row))
    return _COUNT[words.view(np.uint16)[:, :draws]]


def means(counts: np.ndarray, total: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Draws (float32 [draws, K]) of the means of K columns over a dataset's images.

    counts [sources, draws]: `counts` of the set's sources. total [sources] is the weight of each
    source's images, and `sums` [sources, K] is a column's sum over them. A draw without any of the
    set's images is replaced by all of them. The draws are the same on any number of threads.
    """
    columns = np.column_stack([sums, total])
    # Scaled to whole numbers, which float64 adds exactly, in whatever order a BLAS adds them: the
    # sum of a column is below 2**48 and a count below 2**5, so that no sum exceeds 2**53.
    exponents = 48 - np.frexp(np.abs(columns).sum(axis=0))[1]
    columns = np.rint(np.ldexp(columns, exponents))
    totals = np.zeros((counts.shape[1], columns.shape[1]))
    for start in range(0, len(columns), TOGETHER):
        part = slice(start, start + TOGETHER)
        totals += counts[part].T.astype(np.float64) @ columns[part]
    totals[totals[:, -1] == 0] = columns.sum(axis=0)
    totals = np.ldexp(totals, -exponents)
    return (totals[:, :-1] / totals[:, -1:]).astype(np.float32)


def interval(samples: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Bounds [2, ...] of the percentile interval of draws [B, ...], ignoring NaN."""
    quantile = np.nanquantile if np.isnan(samples).any() else np.quantile
    return quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)


def ends_of_shares(
    values: np.ndarray, samples: np.ndarray, percentiles: np.ndarray, sources: np.ndarray
) -> np.ndarray:
    """Bounds [2, K] of the intervals of shares in percent [K]: `percentiles` [2, K] of their draws,
    samples [B, K], or Wilson's (1927) for shares below 5% or above 95%.

    If none of 112 images is lost, no resample loses any, although 3% of all such images may be
    lost: of shares below 5%, percentile intervals have a coverage of 50 to 90%. Wilson's take the
    number of independent images that gives the bootstrap's variance (as Korn and Graubard 1998 do
    for Clopper and Pearson's), or sources [K] if all draws agree.
    """
    near = np.minimum(values, 100 - values) < NEAR
    if not near.any():
        return percentiles
    share = values[near] / 100
    variance = samples[:, near].var(axis=0, dtype=np.float64) / 1e4
    binomial = share * (1 - share)
    images = np.where(
        (variance > 1e-12) & (binomial > 0), binomial / np.maximum(variance, 1e-12), sources[near]
    )
    z2 = special.ndtri((1 + LEVEL) / 2) ** 2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = np.sqrt(z2 * (binomial / images + z2 / (4 * images**2))) / (1 + z2 / images)
    both = percentiles.copy()
    both[:, near] = 100 * np.stack([centre - half, centre + half])
    return both
