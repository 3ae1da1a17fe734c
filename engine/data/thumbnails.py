"""Thumbnails of a benchmark's images for the report, in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from engine.measures import image_changes
from engine.measures.rows import Evaluation
from loaders.benchmarks import emoji
from loaders.pack import Pack

PX = 64  # maximum of the longer side
QUALITY = 50  # of WebP, out of 100
ROOM = 300_000  # bytes of a report's thumbnails, which base64 makes 400,000


def of_changes(packs: Mapping[str, Pack], tests: Sequence[Evaluation]) -> dict[str, dict[str, str]]:
    """WebP files of the images that models flipped or dispute, by dataset and index in its pack, as
    far as there is room. packs: of the evaluated datasets. tests: evaluations on them."""
    shown: dict[str, dict[str, str]] = {name: {} for name in packs}
    left = ROOM
    for change in image_changes.find_changes(tests):
        of_set, image = shown[change.evaluated_on], str(change.index)
        if image not in of_set:
            (pixels,) = packs[change.evaluated_on].pixels([change.index])
            file = webp(pixels)
            left -= len(file)
            if left < 0:
                break
            of_set[image] = base64.b64encode(file).decode()
    return shown


def webp(pixels: np.ndarray) -> bytes:
    """An image (uint8 [H, W, 3]) as a WebP file with sides of at most `PX` pixels."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((PX, PX))
    image.save(file, format="WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def contact_sheet(packs: Sequence[Pack]) -> str:
    """A PNG of up to 8 of the packs' concepts in every emoji style, each in its first rendering."""
    labels = np.unique(np.concatenate([pack.labels for pack in packs]))
    picked = labels[np.linspace(0, len(labels) - 1, 8).astype(int)]
    rows: dict[str, dict[str, np.ndarray]] = {}
    for pack in packs:
        for index in np.flatnonzero(np.isin(pack.labels, picked)).tolist():
            style, concept, _ = str(pack.keys[index]).split("/")
            if concept not in rows.setdefault(style, {}):
                (rows[style][concept],) = pack.pixels([index])
    png = io.BytesIO()
    images = {style: list(of_style.values()) for style, of_style in rows.items()}
    emoji.contact_sheet(images).save(png, format="PNG")
    return base64.b64encode(png.getvalue()).decode()
