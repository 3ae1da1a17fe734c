"""Samples of a dataset that are balanced over its parts and classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def balanced(
    part_of_each: Sequence[str], labels_N: Sequence[int], count: int, seed: int
) -> list[int]:
    """Returns the positions, ascending, of `count` of N images, balanced over parts and classes.

    Counts differ by at most one between parts, between the classes of a part, and between classes
    over all parts. If a class of a part has too few images, the rest are drawn from all remaining
    images.
    """
    places: dict[tuple[str, int], list[int]] = {}
    for position, group in enumerate(zip(part_of_each, labels_N, strict=True)):
        places.setdefault(group, []).append(position)
    parts = sorted({part for part, _ in places})
    labels = sorted({label for _, label in places})
    share, rest = divmod(count, len(parts) * len(labels))
    random = np.random.default_rng([seed, len(parts), len(labels)])
    order = random.permutation(labels).tolist()
    extra = np.full(len(parts), rest // len(parts))
    extra[random.permutation(len(parts))[: rest % len(parts)]] += 1
    start = 0
    chosen: list[int] = []
    for number, (part, more) in enumerate(zip(parts, extra.tolist(), strict=True)):
        # All parts cycle through the same shuffled list of classes, so classes stay balanced.
        favoured = {order[(start + i) % len(order)] for i in range(more)}
        start += more
        for label in labels if share else sorted(favoured):
            there = places.get((part, label), [])
            mixed = np.random.default_rng([seed, number, label]).permutation(len(there))
            chosen += [there[i] for i in mixed[: share + (label in favoured)]]
    left = np.setdiff1d(np.arange(len(labels_N)), chosen)
    mixed = np.random.default_rng([seed, count]).permutation(left)
    return sorted(chosen + mixed[: count - len(chosen)].tolist())
