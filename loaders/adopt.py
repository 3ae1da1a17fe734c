"""Makes packs from FFCV's own files, without decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loaders.beton import JPEG, Beton
from loaders.copies import Copies
from loaders.decoding import jpeg_shape
from loaders.encode import encode
from loaders.files.durable import file_hash
from loaders.pack import Item, Pack
from loaders.trees import first_names


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
    """Copies the samples of `file` (an RGB image and an integer label each) to the pack `out`.

    classes: the name of each label. size: side in pixels that all images must have. transform_spec:
    the transform that is assumed to have made the images. Raises ValueError naming the first sample
    that does not fit, and errors of `loaders.encode.encode`.
    """
    beton = Beton.open(file)
    if wrong := [label for label, n in Counter(classes).items() if n > 1 or not label.strip()]:
        raise ValueError(
            f"--classes has empty or repeated names: {first_names([repr(w) for w in wrong])}"
        )
    _check(beton, size, len(classes))

    is_jpeg = beton.rows["mode"][0] == JPEG

    def read(number: int) -> bytes:
        """A JPEG's header must match its row, since decoders rely on it."""
        (blob,) = beton.blobs([number])
        if is_jpeg and (shape := jpeg_shape(blob)) != (size, size):
            key = f"{file.stem}/{number:08d}"
            raise ValueError(f"{file}: {key} is a JPEG of {shape}, not {(size, size)}")
        return blob

    return encode(
        out,
        name=name,
        items=[
            Item(label, key := f"{file.stem}/{number:08d}", key, payload=number)
            for number, label in enumerate(beton.rows["label"].tolist())
        ],
        encoder=Copies("jpeg" if is_jpeg else "raw", (size, size), read),
        transform_spec=transform_spec,
        classes=classes,
        source_fingerprint=file_hash(file),
        extra=extra,
    )


def _check(beton: Beton, size: int, classes: int) -> None:
    rows = beton.rows
    if len(np.unique(rows["mode"])) > 1:
        raise ValueError(
            f"{beton.path} has both raw pixels and JPEGs; a pack needs one kind. FFCV's "
            "RGBImageField writes one kind with write_mode='jpg' or 'raw'"
        )
    shapes = np.unique(rows[["height", "width"]]).tolist()
    if shapes != [(size, size)]:
        sizes = first_names([f"{height} x {width}" for height, width in shapes])
        (height, width), *others = shapes
        alone = f"set model.image_size={height}, or " if height == width and not others else ""
        raise ValueError(
            f"{beton.path} has images of {sizes} pixels, not {size} x {size}; {alone}encode and "
            "resize the image files: --images FOLDER"
        )
    unknown = (rows["label"] < 0) | (rows["label"] >= classes)
    if unknown.any():
        raise ValueError(
            f"{beton.path}: sample {unknown.argmax()} has label {rows['label'][unknown.argmax()]}, "
            f"but --classes names {classes}"
        )
