"""An image file of any kind as the RGB pixels, 8 bits a channel, that models see."""

from __future__ import annotations

import warnings
from typing import IO

import numpy as np
from PIL import Image, ImageColor
from PIL.TiffImagePlugin import TiffImageFile

WHITE = "white"
# Pillow decodes these itself. For others, such as EPS, it starts a program on the file's content.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF
_BITS, _BLACK = 258, 262  # TIFF: bits of a level, and 1 where level 0 is black
_STEPS = {"L;2": 85, "L;4": 17}  # of a level of 2 and 4 bits on 8


def open_image(file: IO[bytes]) -> Image.Image:
    """The image as it is stored: its mode is unchanged, its orientation tag is not applied.

    Raises UnidentifiedImageError where the content, whatever the file's name, has another format,
    and ValueError for more pixels than Pillow takes for an image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; shrink it") from error
    if image.format == "PNG" and (clear := image.info.get("transparency")) is not None:
        # Pillow gives the pixels 8 bits, but leaves the transparent level as it is in the file.
        layout = image.tile[0].args
        if layout in _STEPS:
            image.info["transparency"] = clear * _STEPS[layout]
        elif layout == "RGB;16B":
            image.info["transparency"] = tuple(level >> 8 for level in clear)
    image.load()
    return image


def to_rgb(image: Image.Image, background: str = WHITE) -> tuple[Image.Image, str]:
    """The image as RGB, and in words what was unusual about it; empty for a plain RGB image.

    Transparent pixels are composited on `background`, a colour as Pillow names it. Grey of 16 bits
    keeps its high byte, as Pillow keeps that of 16-bit colour. Palettes, grey and CMYK become RGB
    as Pillow converts them. Of an animation the first frame is taken. Raises ValueError for floats
    and 32-bit integers: nothing says which range they have; and for TIFFs of 12 bits, or of 16
    whose level 0 is white: Pillow takes them for others.
    """
    pixels, unusual = image, []
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError(f"the range of pixels of mode {image.mode} is unknown; use 8 or 16 bits")
    if image.mode.startswith("I"):
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {_BITS: (16,), _BLACK: 1}
        if (tags[_BITS], tags[_BLACK]) != ((16,), 1):
            raise ValueError("a TIFF of 12 bits, or of 16 whose 0 is white; use 16 with 0 as black")
        unusual.append("16 bits scaled to 8")
        levels = np.asarray(image)
        pixels = Image.fromarray((levels >> 8).astype(np.uint8))
        if (clear := image.info.get("transparency")) is not None:
            pixels.putalpha(Image.fromarray((levels != clear).astype(np.uint8) * 255))
    elif image.mode != "RGB":
        unusual.append(f"{image.mode} converted to RGB")
    if pixels.has_transparency_data:
        rgba = pixels.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            unusual.append(f"composited on {background}")
            pixels = Image.new("RGBA", rgba.size, background)
            pixels.alpha_composite(rgba)
    if image.getexif().get(_ORIENTATION, 1) != 1:
        unusual.append("orientation tag not applied")
    if getattr(image, "is_animated", False):
        unusual.append("animated, first frame taken")
    return pixels.convert("RGB"), ", ".join(unusual)


def colour(name: str) -> tuple[int, ...]:
    """Red, green and blue (0 to 255) of a colour as Pillow names it. Raises ValueError."""
    levels = ImageColor.getrgb(name)
    if len(levels) != 3 or not 0 <= min(levels) <= max(levels) <= 255:
        raise ValueError(f"{name!r} is not an opaque colour")
    return levels
