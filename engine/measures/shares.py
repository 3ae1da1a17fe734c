"""Intervals of shares near 0 and 100%, where resampling finds too little.

Of 112 images none of which is lost, every resample loses none, and yet 3% may be lost of all images
like these. Of a share below 5%, percentiles of a bootstrap hold the truth in half of all cases to
nine tenths. There, and above 95%, an interval is Wilson's (1927), with the number of independent
images that has the bootstrap's variance (as Korn and Graubard 1998 for Clopper and Pearson's).
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
    """Both ends [2, K] of the intervals of shares in percent [K]: `percentiles` [2, K] of their
    draws, samples [B, K], and Wilson's near 0 and 100. sources [K]: independent images of those
    whose draws all agree."""
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
