"""CIFAR-10-C and CIFAR-100-C: a .npy file per corruption of the test set, and one of labels.

An array has the test images at severity 1, then at 2, up to 5, in the same order. Arrays are
memory-mapped and never unpickled.
"""

from __future__ import annotations

import functools
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from loaders import shards, trees
from loaders.pack import Item
from loaders.trees import Listing, Place

SEVERITIES = 5
LABELS = "labels.npy"
COLUMNS = ("corruption", "severity")
# NumPy's errors for damaged files; it reads an array's type and shape as a Python literal.
_DAMAGED = (OSError, ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError)


class CifarRow(NamedTuple):
    """Where an image is: a row of an array."""

    path: str
    row: int

    @property
    def where(self) -> str:
        """The row, for errors; as `trees.Place.where`."""
        return f" in row {self.row} of {Path(self.path).name}"


def list_cifar_c(
    root: Path, corruptions: Sequence[str], severities: Sequence[int], classes: Sequence[str]
) -> Listing:
    """Lists the images of the files `<corruption>.npy` (uint8 [5 N, H, W, 3]) in a folder.

    classes: the names of the numbers in `labels.npy` (int [5 N]). The severities of a test image
    are copies of one photo.

    Raises ValueError naming a file that is missing, damaged or of another shape, and labels that
    have no name or differ between severities.
    """
    files = {name: root / f"{name}.npy" for name in corruptions}
    labels = _mapped(root / LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "ui" or len(labels) % SEVERITIES:
        raise ValueError(
            f"{root / LABELS} has {labels.dtype} {list(labels.shape)}, not whole numbers of "
            f"{SEVERITIES} severities: unpack the download again"
        )
    of_photo, *others = labels.reshape(SEVERITIES, -1)
    if any((of_photo != other).any() for other in others):
        raise ValueError(f"{root / LABELS} differs between severities: unpack the download again")
    if len(of_photo) and not 0 <= of_photo.min() <= of_photo.max() < len(classes):
        raise ValueError(
            f"{root / LABELS} has labels from {of_photo.min()} to {of_photo.max()}, but "
            f"dataset.class_names has {len(classes)} names: is it the right folder?"
        )
    numbers = of_photo.tolist()
    items: list[Item] = []
    for name, file in files.items():
        images = _mapped(file)
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or (*images.shape[::3],) != (len(labels), 3)
        ):
            raise ValueError(
                f"{file} has {images.dtype} {list(images.shape)}, not uint8 "
                f"[{len(labels)}, height, width, 3] as {LABELS} requires: unpack it again"
            )
        for severity in severities:
            first = (severity - 1) * len(numbers)
            items += [
                Item(
                    label,
                    f"{root.name}/{photo:05}",
                    f"{name}/{severity}/{photo:05}",
                    CifarRow(str(file), first + photo),
                    (name, str(severity)),
                )
                for photo, label in enumerate(numbers)
            ]
    listed = [
        trees.File(file.name, Place(str(file)), shards.fingerprint_of(file))
        for file in (root / LABELS, *files.values())
    ]
    return Listing(items, classes, trees.fingerprint(listed), columns=COLUMNS)


def open_image(row: CifarRow) -> Image.Image:
    """Returns the image of a row."""
    return Image.fromarray(np.asarray(_mapped(Path(row.path))[row.row]))


@functools.lru_cache(maxsize=32)
def _mapped(file: Path) -> np.ndarray:
    """The array of a file, which is read where it is used."""
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except _DAMAGED as error:
        raise ValueError(f"{file} is not an array that can be read ({error})") from error
