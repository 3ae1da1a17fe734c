"""Select the images of a smoke run (`dataset.limit`).

All datasets use the same classes with several images each, so some can be held out. The selection
depends on names only; a larger limit adds images to those of a smaller one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

IMAGES_A_CLASS = 6  # enough to hold out at least one of each class


def chosen(classes: Sequence[str], keys: Sequence[str], limit: int) -> list[int]:
    """Positions (ascending) of at most `limit` images; classes, keys: of each image.

    Classes are ordered by the hashes of their names and contribute `IMAGES_A_CLASS` each, and again
    as many while there is room.
    """
    of_class: Counter[str] = Counter()
    order: dict[int, tuple[int, bytes, int]] = {}
    hashes = {name: _hash(name) for name in set(classes)}
    for position in sorted(range(len(keys)), key=lambda position: _hash(keys[position])):
        name = classes[position]
        turn = of_class[name] // IMAGES_A_CLASS
        order[position] = (turn, hashes[name], of_class[name])
        of_class[name] += 1
    return sorted(sorted(order, key=order.__getitem__)[:limit])


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8, person=b"smoke run").digest()
