"""Thumbnails of single images of a set, small enough for a page to hold them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

PX = 64  # of the longer side, at most
QUALITY = 50  # of WebP, of 100
ROOM = 300_000  # bytes of a report's thumbnails, which base64 makes 400,000


def webp(pixels: np.ndarray) -> bytes:
    """An image (uint8 [H, W, 3]) as a WebP file of at most `PX` pixels a side."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((PX, PX))
    image.save(file, format="WEBP", quality=QUALITY, method=6)
    return file.getvalue()
