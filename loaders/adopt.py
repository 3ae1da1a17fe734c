"""Packs of images that are stored already: those of FFCV's own writer, or a part of another pack's.

No image is decoded again.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loaders import jpeg
from loaders.beton import JPEG, Beton
from loaders.encode import encode
from loaders.files import file_hash
from loaders.pack import Item, Pack
from loaders.trees import first_names
from loaders.writer import Stored


def adopt(
    file: Path,
    out: Path,
    *,
    name: str,
    classes: Sequence[str],
    size: int,
    transform_spec: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Pack:
    """Copy the samples of `file` (an RGB image and an integer label each) to the pack `out`.

    classes: the name of each label. size: pixels of each side that all images must have;
    `transform_spec` is taken to be how they got it. Raises ValueError naming the first sample that
    does not fit, and as `loaders.encode.encode`.
    """
    beton = Beton.open(file)
    if wrong := [label for label, n in Counter(classes).items() if n > 1 or not label.strip()]:
        raise ValueError(
            f"--classes names no class, or one twice: {first_names([repr(w) for w in wrong])}"
        )
    _check(beton, size, len(classes))
    return encode(
        out,
        name=name,
        items=[
            Item(label, key := f"{file.stem}/{number:08d}", key, payload=number)
            for number, label in enumerate(beton.rows["label"].tolist())
        ],
        encoder=_Copy(beton, "jpeg" if beton.rows["mode"][0] == JPEG else "raw"),
        transform_spec=transform_spec,
        classes=classes,
        source_fingerprint=file_hash(file),
        extra=extra,
    )


def part(pack: Pack, positions: Sequence[int], out: Path, *, extra: Mapping[str, Any]) -> Pack:
    """Copy the samples at these positions to the pack `out`, which has all of the pack's classes.

    Raises ValueError for a damaged sample, and as `loaders.encode.encode`.
    """
    return encode(
        out,
        name=pack.name,
        items=[
            Item(int(pack.labels[i]), str(pack.sources[i]), str(pack.keys[i]), payload=i)
            for i in positions
        ],
        encoder=_CopyOfPack(pack),
        transform_spec=pack.manifest["transform"],
        classes=pack.classes,
        source_fingerprint=pack.manifest["source_fingerprint"],
        extra=extra,
    )


def _check(beton: Beton, size: int, classes: int) -> None:
    rows = beton.rows
    if len(np.unique(rows["mode"])) > 1:
        raise ValueError(
            f"{beton.path} holds raw pixels and JPEGs; a pack has one of them. FFCV's "
            "RGBImageField writes one with write_mode='jpg' or 'raw'"
        )
    shapes = np.unique(rows[["height", "width"]]).tolist()
    if shapes != [(size, size)]:
        sizes = first_names([f"{height} x {width}" for height, width in shapes])
        (height, width), *others = shapes
        alone = f"set model.image_size={height}, or " * (height == width and not others)
        raise ValueError(
            f"{beton.path} holds images of {sizes} pixels, not {size} x {size}; {alone}encode the "
            "image files, which are resized: --source FOLDER"
        )
    unknown = (rows["label"] < 0) | (rows["label"] >= classes)
    if unknown.any():
        raise ValueError(
            f"{beton.path}: sample {unknown.argmax()} has label {rows['label'][unknown.argmax()]}, "
            f"and --classes names {classes}"
        )


@dataclass(frozen=True)
class _Copy:
    """The bytes of a sample. A JPEG's header must say what its row says: decoders rely on it."""

    beton: Beton
    format: str

    def __call__(self, item: Item) -> Stored:
        (blob,) = self.beton.blobs([item.payload])
        row = self.beton.rows[item.payload]
        shape = int(row["height"]), int(row["width"])
        if row["mode"] == JPEG and (actual := jpeg.shape(blob)) != shape:
            raise ValueError(f"{self.beton.path}: {item.key} is a JPEG of {actual}, not {shape}")
        return Stored(blob, zlib.crc32(blob), shape, "")


@dataclass(frozen=True)
class _CopyOfPack:
    """The bytes of a pack's sample, whose checksum must be that of the pack."""

    pack: Pack

    @property
    def format(self) -> str:
        return self.pack.format

    def __call__(self, item: Item) -> Stored:
        blob = self.pack.blob(item.payload)
        return Stored(blob, zlib.crc32(blob), self.pack.shape, "")
