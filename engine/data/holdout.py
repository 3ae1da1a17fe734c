"""Which images of a set are held out: the same for every model, and none that training saw.

IN-C shows a photo of the validation set up to 75 times. If copies could be split, a model would be
evaluated on photos that it was trained on.
"""

from __future__ import annotations

import numpy as np


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
