"""Decodes JPEGs by FFCV's decoder if FFCV is built, otherwise by Pillow.

FFCV's decoder takes about half of Pillow's time (docs/performance.md). It uses libjpeg-turbo's fast
DCT, so its pixels differ from Pillow's by about one grey level of 255. Results that depend on
pixels are therefore stored by `decoder`. We call its C function directly, since FFCV's Loader
compiles for seconds in each process, ignores decoder errors and sets torch's threads.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

log = logging.getLogger(__name__)

_POINTER, _U32 = ctypes.c_void_p, ctypes.c_uint32


def decoder() -> str:
    """Returns `ffcv` or `pillow`, the decoder in this Python."""
    return "pillow" if _imdecode() is None else "ffcv"


def decode(blob: bytes, out: np.ndarray) -> None:
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


def shape(blob: bytes) -> tuple[int, int]:
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
