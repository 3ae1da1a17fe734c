"""Which images of a set are held out: the same for every model, and none that training saw.

IN-C shows one photo of the validation set up to 75 times. Were its copies split like any images, a
model would be judged on photos it was trained on.
"""

from __future__ import annotations

import numpy as np


def units_of(labels: np.ndarray, sources: np.ndarray) -> np.ndarray | None:
    """The first place of each image's source image, int64 [N]: what a split must keep together.

    None where that changes no split: no class has two images of one source. None too where a class
    is one source (emoji), of which nothing could be held out.
    """
    first: dict[str, int] = {}
    units = np.array([first.setdefault(one, place) for place, one in enumerate(sources.tolist())])
    if len(first) <= len(np.unique(labels)):
        return None
    alone = len(set(zip(labels.tolist(), units.tolist(), strict=True))) == len(labels)
    return None if alone else units


def split(
    labels: np.ndarray, share: float, seed: int, units: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Seeded split, stratified by class: positions to train on, positions held out (sorted).

    `units` (int64 [N]): images of one number stay together; None takes each alone. Of a class with
    n units round(share * n) are held out, but never all of them.
    """
    units = np.arange(len(labels)) if units is None else units
    held = []
    for label in np.unique(labels) if share else ():
        places = np.flatnonzero(labels == label)
        own = np.unique(units[places])
        mixed = np.random.default_rng([seed, int(label)]).permutation(own)
        chosen = mixed[: min(round(share * len(own)), len(own) - 1)]
        held.append(places[np.isin(units[places], chosen)])
    holdout = np.sort(np.concatenate(held)) if held else np.zeros(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), holdout), holdout
