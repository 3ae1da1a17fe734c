"""Packs of a few small images, which several tests read."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loaders.encode import Images, encode
from loaders.pack import Item, Pack

COUNT, SHAPE = 61, (9, 14)


def draw(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SHAPE[::-1], Image.Resampling.BICUBIC)


def items(seeds: Iterable[int]) -> list[Item]:
    return [Item(i % 7, f"s{i}", f"image-{i}", i) for i in seeds]


def make(
    out: Path,
    format: Any = "raw",
    *,
    seeds: Iterable[int] = range(COUNT),
    open_image: Callable[[Any], Image.Image] = draw,
    transform: Callable[[Image.Image], np.ndarray] = np.asarray,
    **options: Any,
) -> Pack:
    defaults: dict[str, Any] = {
        "name": "tiny",
        "items": items(seeds),
        "encoder": Images(open_image, transform, format),
        "transform_spec": {},
        "classes": list("abcdefg"),
        "source_fingerprint": "",
        "progress": False,
    }
    return encode(out, **defaults | options)
