"""Which images of a set are trained on and held out: the same for every model.

IN-C shows a photo of the validation set up to 75 times. If copies could be split, a model would be
evaluated on photos that it was trained on. What is trained on can be a part of the training split:
images of a class stand in a seeded order, and a part is the beginning of it. So a smaller part lies
within a larger one of the same seed, and a larger part only adds images.

Sets may show the same photos. With `dataset.holdout_by=source` a photo is held out of all of them
or of none (`held_out`).
"""

from __future__ import annotations

import hashlib

import numpy as np

_STREAM = 1  # keeps the draws of a part from others of the same seed


def units_of(labels: np.ndarray, sources: np.ndarray) -> np.ndarray | None:
    """Position of the first image of each image's source, int64 [N]; a split keeps these together.

    None where that changes no split, because no class has two images of the same source. None too
    where a class is a single source (emoji): nothing of it could be held out.
    """
    first: dict[str, int] = {}
    units = np.array([first.setdefault(source, i) for i, source in enumerate(sources.tolist())])
    if len(first) <= len(np.unique(labels)):
        return None
    alone = len(set(zip(labels.tolist(), units.tolist(), strict=True))) == len(labels)
    return None if alone else units


def held_out(sources: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Whether each image's source is held out (bool [N]), with probability `share`.

    It follows from the source's name, share and seed alone, so it is the same in every set, and
    what is held out at one share is held out at every larger one.
    """
    names, place = np.unique(sources, return_inverse=True)
    words = [f"{seed} {name}".encode() for name in names.tolist()]
    hashes = [hashlib.blake2b(word, digest_size=8, person=b"holdout").digest() for word in words]
    below = [int.from_bytes(of, "big") < share * 2**64 for of in hashes]
    return np.array(below, bool)[place]


def split(
    labels: np.ndarray, share: float, seed: int, units: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Seeded split, stratified by class: positions to train on, positions held out (sorted).

    units: int64 [N]; images with the same number stay together, and None separates all. Of a class
    with n units, round(share * n) are held out, but never all.
    """
    units = np.arange(len(labels)) if units is None else units
    holdouts = [np.zeros(0, dtype=np.int64)]
    for label in np.unique(labels) if share else ():
        positions = np.flatnonzero(labels == label)
        of_class = np.unique(units[positions])
        shuffled = np.random.default_rng([seed, int(label)]).permutation(of_class)
        chosen = shuffled[: min(round(share * len(of_class)), len(of_class) - 1)]
        holdouts.append(positions[np.isin(units[positions], chosen)])
    holdout = np.sort(np.concatenate(holdouts))
    return np.setdiff1d(np.arange(len(labels)), holdout), holdout


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
