"""A .beton file that FFCV's own writer made becomes a pack; no image is decoded again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loaders import jpeg
from loaders.beton import JPEG, Beton
from loaders.encode import encode
from loaders.files import file_hash
from loaders.pack import MODES, Item, Pack
from loaders.writer import Stored

FORMATS: dict[int, Literal["raw", "jpeg"]] = {MODES["raw"]: "raw", MODES["jpeg"]: "jpeg"}


def adopt(
    file: Path,
    out: Path,
    *,
    name: str,
    classes: Sequence[str],
    size: int,
    transform_spec: Mapping[str, Any],
    extra: Mapping[str, Any],
    progress: bool = True,
) -> Pack:
    """Copy the samples of `file` (an RGB image and an integer label each) to the pack `out`.

    classes: the name of each label. size: pixels of each side that all images must have;
    `transform_spec` is taken to be how they got it. Raises ValueError naming the first sample that
    does not fit, and as `loaders.encode.encode`.
    """
    beton = Beton.open(file)
    _check(beton, size, len(classes))
    keys = [f"{file.stem}/{number:08d}" for number in range(len(beton))]
    rows = zip(beton.rows["label"].tolist(), keys, range(len(beton)), strict=True)
    return encode(
        out,
        name=name,
        items=[Item(label, key, key, number) for label, key, number in rows],
        encoder=_Copy(beton, FORMATS[int(beton.rows["mode"][0])]),
        transform_spec=transform_spec,
        classes=classes,
        source_fingerprint=file_hash(file),
        extra=extra,
        progress=progress,
    )


def _check(beton: Beton, size: int, classes: int) -> None:
    rows = beton.rows
    modes = np.unique(rows["mode"])
    if len(modes) > 1:
        raise ValueError(
            f"{beton.path} holds raw pixels and JPEGs; a pack has one of them. FFCV's "
            "RGBImageField writes one with write_mode='jpg' or 'raw'"
        )
    shapes = np.unique(np.stack([rows["height"], rows["width"]], axis=1), axis=0).tolist()
    (height, width), last = shapes[0], shapes[-1]
    files = "the image files, which are resized: --source FOLDER"
    if len(shapes) > 1:
        raise ValueError(
            f"{beton.path} holds images of {len(shapes)} sizes, from {height} x {width} to "
            f"{last[0]} x {last[1]} pixels; a pack has one. Encode {files}, or write the "
            f".beton again from images of {size} x {size}"
        )
    if (height, width) != (size, size):
        square = f"take a model of that size: model.image_size={height}, or " * (height == width)
        raise ValueError(
            f"{beton.path} holds images of {height} x {width} pixels, not {size} x {size}; "
            f"{square}encode {files}"
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
    format: Literal["raw", "jpeg"]

    def __call__(self, item: Item) -> Stored:
        (blob,) = self.beton.blobs([item.payload])
        row = self.beton.rows[item.payload]
        shape = int(row["height"]), int(row["width"])
        if row["mode"] == JPEG and (actual := jpeg.shape(blob)) != shape:
            raise ValueError(f"{self.beton.path}: {item.key} is a JPEG of {actual}, not {shape}")
        return Stored(blob, zlib.crc32(blob), shape, "")
