"""The layout everybody has: one folder a class, image files inside."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from loaders.pack import Item

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}


def items(root: Path) -> tuple[list[Item], list[str]]:
    """Samples and class names of `root/<class>/<image>`, both in sorted order.

    Images of the same class and file name in other sets are taken for copies of one source image.
    Raises ValueError naming a root that is missing, empty or has files where classes should be.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; it should hold one folder a class")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = [
        Item(label, f"{name}/{path.stem}", path.relative_to(root).as_posix(), str(path))
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise ValueError(f"{root} holds no images as <class>/<image>; is it the right folder?")
    empty = set(classes) - {item.key.split("/")[0] for item in found}
    if empty:
        raise ValueError(f"{root} has classes without images: {', '.join(sorted(empty)[:3])}")
    return found, classes


def fingerprint(root: Path) -> str:
    """SHA-256 over name, size and time of change of every image below `root`."""
    entries = []
    for item in items(root)[0]:
        status = Path(item.payload).stat()
        entries.append(f"{item.key} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def open_image(path: str) -> Image.Image:
    """The image as RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")
