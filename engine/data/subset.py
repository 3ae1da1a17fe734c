"""A part of a training split: K images a class, or a portion of each class.

Images of a class stand in a seeded order, and a part is the beginning of it. So a smaller part lies
within a larger one of the same seed, and a larger part only adds images.
"""

from __future__ import annotations

import numpy as np

_STREAM = 1  # keeps these draws apart from others of the same seed


def first_of_each_class(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Positions (int64, sorted) of `shots` images a class; a class with fewer gives all it has.

    labels: int64 [N].
    """
    rank, _, _ = _ranks(labels, np.random.default_rng([seed, _STREAM]))
    return np.flatnonzero(rank < shots)


def portion_of_each_class(labels: np.ndarray, portion: float, seed: int) -> np.ndarray:
    """Positions (int64, sorted) of a portion in (0, 1] of the images.

    labels: int64 [N]. A class of n images gives portion * n of them, rounded up or down; the
    seed spreads the rounding evenly over the classes. So classes of one size give portion * N in
    all, to within an image, and a small portion can leave a class without images.
    """
    rng = np.random.default_rng([seed, _STREAM])
    rank, of_class, counts = _ranks(labels, rng)
    # The image of rank r is due at (r + offset) / n: at even steps, and never at 1.
    offset = (rng.permutation(len(counts)) + 0.5) / max(len(counts), 1)
    return np.flatnonzero((rank + offset[of_class]) / counts[of_class] < portion)


def _ranks(
    labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image's place in the order of its class [N], its class's number [N], and class sizes."""
    shuffled = rng.permutation(len(labels))
    _, of_class, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = shuffled[np.argsort(of_class[shuffled], kind="stable")]
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.concatenate([np.arange(0), *map(np.arange, counts)])
    return rank, of_class, counts
