"""The size of a pack on disk, before it is written."""

from __future__ import annotations

from engine.recipe.schema import Recipe
from loaders.beton import size_of
from loaders.writer import page_size_of

JPEG_SHARE = 0.3  # of the raw size; photos at quality 90 take less
SAMPLE = 500  # bytes of an image's label, names and checksum, at most


def size_bytes(recipe: Recipe, images: int) -> int:
    """Bytes of a pack of so many images, padding included; for JPEG a rough upper bound."""
    size = recipe.model.image_size
    share = JPEG_SHARE if recipe.dataset.pack_format == "jpeg" else 1
    nbytes = round(3 * size**2 * share)
    return size_of(images, nbytes, page_size_of((size, size))) + images * SAMPLE
