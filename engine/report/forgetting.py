"""Does the distance to a set tell how much fine-tuning on it forgets?

For every downstream set: the drop in accuracy on the upstream set after fine-tuning, against the
distance between the two sets. With eight sets a correlation alone says little, so both Pearson's
and Spearman's come with an exact p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.measures import correlation
from engine.measures.standings import Standings


@dataclass(frozen=True)
class Point:
    """A downstream set: its distance to the upstream set, and what is lost there, in points."""

    name: str
    distance: float
    drop: float


def points(
    model: Standings, distances: Mapping[str, float], upstream: str, method: str = "fine_tune"
) -> list[Point]:
    """A point for each set that the method was fine-tuned on and whose distance is known."""
    line = model.line(method)
    if line is None or upstream not in model.before:
        return []
    return [
        Point(name, distances[name], model.before[upstream] - line.after[name][upstream])
        for name in model.downstreams
        if name != upstream and name in distances and upstream in line.after.get(name, {})
    ]


def statement(spots: Sequence[Point]) -> str:
    """Spearman's and Pearson's coefficient of drop and distance, in a sentence."""
    x, y = (np.array([getattr(spot, name) for spot in spots]) for name in ("distance", "drop"))
    spearman, pearson = correlation.spearman(x, y), correlation.pearson(x, y)
    if np.isnan(pearson.value):
        return (
            f"A correlation needs {correlation.FEWEST} sets or more whose distance and drop are "
            f"not the same; there are {len(spots)} sets."
        )
    return (
        f"Distance and forgetting: Spearman {spearman}, Pearson {pearson}, {len(spots)} sets; p by "
        "permutation of the sets."
    )
