"""Split a dataset into training and held-out images, the same for every model.

IN-C shows a photo of the validation set up to 75 times. Copies stay together; otherwise a model
would be evaluated on photos that it was trained on. Training can use a subset of the training
split: the first images of each class in a seeded order. So with the same seed, a smaller subset is
contained in a larger one.

Datasets may show the same photos. With `dataset.holdout_by=source`, a photo is held out of all of
them or of none (`held_out`).
"""

from __future__ import annotations

import hashlib

import numpy as np

from engine.did_you_mean import nearest
from engine.recipe.schema import DatasetRecipe, SplitRecipe
from loaders.files.durable import short_digest
from loaders.pack import Pack, photos

_STREAM = 1  # separates draws of a subset from others with the same seed


def photos_of(pack: Pack) -> frozenset[str]:
    """The photos of a pack (`loaders.pack.photos`)."""
    return photos(pack.sources, pack.labels)


def of_pack(pack: Pack, dataset: DatasetRecipe) -> tuple[str, np.ndarray, np.ndarray]:
    """How a pack's images are split (`LabelledSet.split_by`), and the positions (int64) trained on
    and held out."""
    share, seed = dataset.holdout, dataset.seed
    if share and dataset.split.column:
        is_held_out = _published(pack, dataset.split)
        published = f"{dataset.split.column}, as published: {short_digest(is_held_out.tolist())}"
        return published, np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    if share and dataset.holdout_by == "source" and photos_of(pack):
        is_held_out = held_out(pack.sources, share, seed)
        return "by hash of source", np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    units = units_of(pack.labels, pack.sources) if share else None
    return ("" if units is None else "by source"), *split(pack.labels, share, seed, units)


def _published(pack: Pack, split: SplitRecipe) -> np.ndarray:
    """Whether each image is held out (bool [N]) by the published split."""
    values = column(pack, split.column)
    for value, key in zip(values, pack.keys.tolist(), strict=True):
        if value not in (*split.train, *split.holdout):
            raise ValueError(
                f"{pack.name}: {key} has {split.column}={value!r}, which neither split.train nor "
                "split.holdout names: add it to one of them, or leave its images out"
            )
    return np.isin(values, split.holdout)


def units_of(labels: np.ndarray, sources: np.ndarray) -> np.ndarray | None:
    """Position of the first image of each image's source, int64 [N]; a split keeps these together.

    None if that changes no split, because no class has two images of one source; also if a class is
    a single source (emoji), of which nothing could be held out.
    """
    first: dict[str, int] = {}
    units = np.array([first.setdefault(source, i) for i, source in enumerate(sources.tolist())])
    if len(first) <= len(np.unique(labels)):
        return None
    alone = len(set(zip(labels.tolist(), units.tolist(), strict=True))) == len(labels)
    return None if alone else units


def held_out(sources: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Whether each image's source is held out (bool [N]), with probability `share`.

    It depends on the source's name, share and seed only, so it is the same in every dataset, and a
    larger share holds out the same sources and more.
    """
    names, place = np.unique(sources, return_inverse=True)
    words = [f"{seed} {name}".encode() for name in names.tolist()]
    hashes = [hashlib.blake2b(word, digest_size=8, person=b"holdout").digest() for word in words]
    below = [int.from_bytes(digest, "big") < share * 2**64 for digest in hashes]
    return np.array(below, bool)[place]


def split(
    labels: np.ndarray, share: float, seed: int, units: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Seeded split, stratified by class: positions to train on, positions held out (sorted).

    units: int64 [N]; images with the same number stay together; None: no constraint. Of a class
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
    """Positions (int64, sorted) of `shots` images per class, or all images of smaller classes.

    labels: int64 [N].
    """
    rank, _, _ = _ranks(labels, np.random.default_rng([seed, _STREAM]))
    return np.flatnonzero(rank < shots)


def fraction_of_each_class(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Positions (int64, sorted) of a fraction in (0, 1] of the images.

    labels: int64 [N]. A class of n images contributes fraction * n, rounded up or down; the seed
    distributes the rounding evenly over classes. So classes of equal size contribute fraction * N
    in total, up to one image, and a small fraction can leave a class without images.
    """
    rng = np.random.default_rng([seed, _STREAM])
    rank, of_class, counts = _ranks(labels, rng)
    # The image of rank r is selected from (r + offset) / n on: at even steps, never at 1.
    offset = (rng.permutation(len(counts)) + 0.5) / max(len(counts), 1)
    return np.flatnonzero((rank + offset[of_class]) / counts[of_class] < fraction)


def _ranks(
    labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image's rank in its class [N], its class's number [N], and class sizes."""
    shuffled = rng.permutation(len(labels))
    _, of_class, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = shuffled[np.argsort(of_class[shuffled], kind="stable")]
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.concatenate([np.arange(0), *map(np.arange, counts)])
    return rank, of_class, counts


def column(pack: Pack, name: str) -> list[str]:
    """The values of a pack's column. Raises ValueError if it has none of this name."""
    if name not in pack.columns:
        raise ValueError(
            f"{pack.name} has no column {name!r}{nearest(name, pack.columns)}; correct its name in "
            f"the dataset's recipe, or delete {pack.folder} to encode the images again"
        )
    return pack.columns[name].tolist()
