"""Intervals of shares near 0 and 100%, where resampling underestimates the variance.

If none of 112 images is lost, no resample loses any, although 3% of all such images may be lost.
For shares below 5%, a bootstrap's percentile intervals have a coverage of 50 to 90%. Below 5% and
above 95%, we therefore use Wilson's interval (1927), with the number of independent images that
gives the bootstrap's variance (as Korn and Graubard 1998 do for Clopper and Pearson's).
"""

from __future__ import annotations

import numpy as np
from scipy import special

from engine.measures.bootstrap import LEVEL

NEAR = 5.0  # percent from 0 or 100


def ends(
    values: np.ndarray,
    samples: np.ndarray,
    percentiles: np.ndarray,
    sources: np.ndarray,
    level: float = LEVEL,
) -> np.ndarray:
    """Bounds [2, K] of the intervals of shares in percent [K]: `percentiles` [2, K] of their draws,
    samples [B, K], or Wilson's near 0 and 100. sources [K]: the number of independent images, used
    if all draws agree."""
    near = np.minimum(values, 100 - values) < NEAR
    if not near.any():
        return percentiles
    share = values[near] / 100
    variance = samples[:, near].var(axis=0, dtype=np.float64) / 1e4
    binomial = share * (1 - share)
    images = np.where(
        (variance > 1e-12) & (binomial > 0), binomial / np.maximum(variance, 1e-12), sources[near]
    )
    z2 = special.ndtri((1 + level) / 2) ** 2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = np.sqrt(z2 * (binomial / images + z2 / (4 * images**2))) / (1 + z2 / images)
    both = percentiles.copy()
    both[:, near] = 100 * np.stack([centre - half, centre + half])
    return both
