"""Effects of the derived emoji datasets, modelled on ImageNet's derived datasets.

A dataset such as `blur` alters the exact renderings of the two original styles: background,
position and size stay the same. So these datasets share their drawings.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageFilter, ImageOps

from loaders.benchmarks.emoji_styles import DERIVED

BLUR = 1 / 32  # standard deviation / side of the image
CONTRAST = 0.3  # remaining share of the contrast


def _outline(image: Image.Image) -> Image.Image:
    edges = image.convert("L").filter(ImageFilter.FIND_EDGES)
    return ImageOps.invert(ImageOps.autocontrast(edges)).convert("RGB")


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(BLUR * image.width))


def _colour(image: Image.Image) -> Image.Image:
    """Red becomes green, green blue, and blue red."""
    red, green, blue = image.split()
    return Image.merge("RGB", (blue, red, green))


def _low_contrast(image: Image.Image) -> Image.Image:
    return Image.blend(Image.new("RGB", image.size, (128, 128, 128)), image, CONTRAST)


EFFECTS: dict[str, Callable[[Image.Image], Image.Image]] = dict(
    zip(DERIVED, (_outline, _blur, _colour, _low_contrast), strict=True)
)
