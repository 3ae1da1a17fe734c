"""Thumbnails of single images of the sets, small enough for a page to hold them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from engine.grid.record import StoredPack
from engine.measures.image_changes import ImageChange
from loaders.pack import Pack

PX = 64  # of the longer side, at most
QUALITY = 50  # of WebP, of 100
ROOM = 300_000  # bytes of a page's thumbnails, which base64 makes 400,000


def of(
    changes: Iterable[ImageChange], packs: Mapping[str, StoredPack]
) -> dict[tuple[str, int], bytes]:
    """WebP files by set and image, as far as packs are at hand and the page has room, set by set.

    packs: by set, with whole paths.
    """
    wanted: dict[str, dict[int, None]] = {}
    for change in changes:
        wanted.setdefault(change.evaluated_on, {})[change.index] = None
    files, left = {}, ROOM
    for name, stored in packs.items():
        pack = _opened(stored)
        images = [] if pack is None else [*wanted.get(name, ())]
        of_set = [webp(pixels) for pixels in pack.pixels(images)] if pack and images else []
        left -= sum(map(len, of_set))
        if left < 0:
            break
        files |= {(name, image): file for image, file in zip(images, of_set, strict=True)}
    return files


def webp(pixels: np.ndarray) -> bytes:
    """An image (uint8 [H, W, 3]) as a WebP file of at most `PX` pixels a side."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((PX, PX))
    image.save(file, format="WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def _opened(stored: StoredPack) -> Pack | None:
    """The pack that a record names; None where it is gone or another lies in its place."""
    try:
        pack = Pack.open(Path(stored.path))
    except (FileNotFoundError, ValueError):
        return None
    return pack if pack.fingerprint == stored.fingerprint else None
