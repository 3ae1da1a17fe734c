"""CKA by its formulas in NumPy, float64."""

import numpy as np


def plain_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, as it is printed, in float64."""
    k, m = (features @ features.T for features in (x, y))
    n, ones = len(k), np.ones(len(k))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return (
        np.trace(k @ m)
        + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ k @ m @ ones)
    ) / (n * (n - 3))


def plain_cka(pairs) -> float:
    """Nguyen et al. 2021, equation 3: means over minibatches (x, y), then the ratio."""
    cross, before, after = (
        np.mean([plain_hsic(*of(x, y)) for x, y in pairs])
        for of in (lambda x, y: (x, y), lambda x, y: (x, x), lambda x, y: (y, y))
    )
    return cross / np.sqrt(before * after)
