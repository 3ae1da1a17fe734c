"""Decodes image files of any kind to the 8-bit RGB pixels that models see.

JPEGs in packs are decoded by FFCV if FFCV is built, in about half of Pillow's time
(docs/performance.md). FFCV uses libjpeg-turbo's fast DCT, so its pixels differ from Pillow's by
about one grey level of 255; results that depend on pixels are stored by `jpeg_decoder`. We call
FFCV's C function directly, since FFCV's Loader compiles for seconds in each process, ignores
decoder errors and sets torch's threads.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageColor
from PIL.TiffImagePlugin import TiffImageFile

log = logging.getLogger(__name__)
WHITE = "white"
# Pillow decodes these itself. For others, such as EPS, it runs a program on the file's content.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF
_BITS, _BLACK = 258, 262  # TIFF: bits per sample; photometric interpretation, 1 if 0 is black
_POINTER, _U32 = ctypes.c_void_p, ctypes.c_uint32
_STEPS = {"L;2": 85, "L;4": 17}  # factors from 2 and 4 bits to 8


def open_image(file: IO[bytes]) -> Image.Image:
    """Returns the image as stored: the mode is unchanged and the orientation tag is not applied.

    Raises UnidentifiedImageError if the content is in another format, whatever the file's name, and
    ValueError for more pixels than Pillow's limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; shrink it") from error
    if image.format == "PNG" and (clear := image.info.get("transparency")) is not None:
        # Pillow scales the pixels to 8 bits, but not the transparent level.
        layout = image.tile[0].args
        if layout in _STEPS:
            image.info["transparency"] = clear * _STEPS[layout]
        elif layout == "RGB;16B":
            image.info["transparency"] = tuple(level >> 8 for level in clear)
    image.load()
    return image


def to_rgb(image: Image.Image, background: str = WHITE) -> tuple[Image.Image, str]:
    """Returns the image as RGB, and a description of what was unusual (empty for plain RGB).

    Transparent pixels are composited on `background`, a Pillow colour name. 16-bit grey keeps its
    high byte, as Pillow does for 16-bit colour. Pillow converts palettes, grey and CMYK. An
    animation gives its first frame.

    Raises ValueError for floats and 32-bit integers, whose range is unknown, and for TIFFs that
    Pillow misreads: 12 bits, or 16 bits with white as 0.
    """
    pixels, unusual = image, []
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError(f"the range of pixels of mode {image.mode} is unknown; use 8 or 16 bits")
    if image.mode.startswith("I"):
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {_BITS: (16,), _BLACK: 1}
        if (tags[_BITS], tags[_BLACK]) != ((16,), 1):
            raise ValueError("a TIFF of 12 bits, or of 16 with 0 as white; use 16 with 0 as black")
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
    """Returns red, green and blue (0 to 255) of a Pillow colour name.

    Raises ValueError for a name that is unknown or not opaque.
    """
    levels = ImageColor.getrgb(name)
    if len(levels) != 3 or not 0 <= min(levels) <= max(levels) <= 255:
        raise ValueError(f"{name!r} is not an opaque colour")
    return levels


def jpeg_decoder() -> str:
    """Returns `ffcv` or `pillow`, the JPEG decoder in this Python."""
    return "pillow" if _imdecode() is None else "ffcv"


def decode_jpeg(blob: bytes, out: np.ndarray) -> None:
    """Writes the pixels of a JPEG file to `out` (uint8 [H, W, 3], contiguous).

    Safe to call from several threads. Raises ValueError if the file is damaged or not an RGB image
    of H x W. FFCV's decoder does not detect a smaller JPEG.
    """
    height, width, _ = out.shape
    imdecode = _imdecode()
    if imdecode is None:
        _by_pillow(blob, out)
    # The whole image: no crop, a scale of 1 / 1, no flip.
    elif imdecode(blob, len(blob), height, width, out.ctypes.data, height, width, 0, 0, 1, 1, 0, 0):
        raise ValueError(f"FFCV cannot decode it as a JPEG of {height} x {width}")


def jpeg_shape(blob: bytes) -> tuple[int, int]:
    """Returns (H, W) from the file's header. Raises ValueError unless it is an RGB or grey JPEG."""
    try:
        with Image.open(io.BytesIO(blob), formats=["JPEG"]) as image:
            if image.mode not in ("RGB", "L"):
                raise ValueError(f"a JPEG of {image.mode} colours")
            return image.height, image.width
    except OSError as error:
        raise ValueError(str(error)) from error


def _by_pillow(blob: bytes, out: np.ndarray) -> None:
    try:
        with Image.open(io.BytesIO(blob), formats=["JPEG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(str(error)) from error
    if pixels.shape != out.shape:
        raise ValueError(f"a JPEG of {pixels.shape}, not {out.shape}")
    out[...] = pixels


@cache
def _imdecode() -> Callable[..., int] | None:
    """The function of FFCV's library, opened without importing FFCV; None if not installed."""
    spec = importlib.util.find_spec("ffcv")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("_libffcv*.so"):
            try:
                function = ctypes.CDLL(str(path)).imdecode
            except (OSError, AttributeError) as error:
                log.warning("FFCV's library cannot be used (%s); Pillow decodes JPEGs", error)
                return None
            function.argtypes = (
                ctypes.c_char_p, ctypes.c_uint64, _U32, _U32, _POINTER,
                _U32, _U32, _U32, _U32, _U32, _U32, ctypes.c_bool, ctypes.c_bool,
            )  # fmt: skip
            return function
    return None
