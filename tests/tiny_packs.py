"""Packs of a few small images, which several tests read."""

from pathlib import Path

import numpy as np
from PIL import Image

from loaders.encode import Images, encode
from loaders.pack import Item, Pack

COUNT, SHAPE = 61, (9, 14)


def draw(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SHAPE[::-1], Image.Resampling.BICUBIC)


def make(out: Path, format: str = "raw") -> Pack:
    return encode(
        out,
        name="tiny",
        items=[Item(i % 7, f"s{i}", f"image-{i}", i) for i in range(COUNT)],
        encoder=Images(draw, np.asarray, format),
        transform_spec={},
        classes=list("abcdefg"),
        source_fingerprint="",
        progress=False,
    )
