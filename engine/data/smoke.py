"""The few images of each set that a smoke run has (`dataset.limit`).

All sets take the same classes, and a class gives several images, so that some can be held out. What
is taken follows from names alone: a larger limit adds images to those of a smaller one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

IMAGES_A_CLASS = 6  # of which a hold-out of a tenth or more leaves at least one


def chosen(classes: Sequence[str], keys: Sequence[str], limit: int) -> list[int]:
    """Positions (ascending) of at most `limit` images; classes, keys: of each image.

    Classes come in the order of their names' hashes and give `IMAGES_A_CLASS` each; where images
    are wanted still, they give as many again.
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
