"""On which side of its point a name stands, so that names cover each other and points least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas

Point = tuple[float, float]
Box = tuple[float, float, float, float]

WIDTH, HEIGHT = 640, 300  # of the plot that places are chosen for, in pixels
LETTER, LINE, GAP = 6.2, 12, 9  # of a name, in pixels
SIDES = {
    "right": {"align": "left", "baseline": "middle", "dx": GAP},
    "left": {"align": "right", "baseline": "middle", "dx": -GAP},
    "above": {"align": "center", "baseline": "bottom", "dy": -GAP},
    "below": {"align": "center", "baseline": "top", "dy": GAP},
}


def layers(data: pandas.DataFrame, x: str, y: str, name: str, line: str) -> list[dict[str, Any]]:
    """Vega-Lite's layers of the names of a scatter's dots, one a side; empty names have none. line:
    a column, or empty; names keep off the lines through its rows of one value."""
    named = data[data[name] != ""]
    others = data.loc[data[name] == "", [x, y]].to_numpy()
    for _, points in data.groupby(line) if line else ():
        shares = np.linspace(0, len(points) - 1, 12 * len(points))
        along = (np.interp(shares, range(len(points)), points[column]) for column in (x, y))
        others = np.concatenate([others, np.column_stack(list(along))])
    places = dict(zip(named[name], zip(named[x], named[y], strict=True), strict=True))
    return [
        {
            "transform": [{"filter": {"field": name, "oneOf": names}}],
            "mark": {"type": "text", **SIDES[side]},
            "encoding": {"text": {"field": name, "type": "nominal"}},
        }
        for side, names in sides(places, [(a, b) for a, b in others.tolist()]).items()
        if names
    ]


def sides(names: Mapping[str, Point], others: Sequence[Point] = ()) -> dict[str, list[str]]:
    """By side of `SIDES`, the names that stand there. others: further points not to be covered."""
    points = [*names.values(), *others]
    scales = [_scale([point[k] for point in points]) for k in (0, 1)]

    def place(point: Point) -> Point:
        x, y = ((value - low) / size for value, (low, size) in zip(point, scales, strict=True))
        return x * WIDTH, (1 - y) * HEIGHT

    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in map(place, points)]
    chosen: dict[str, list[str]] = {side: [] for side in SIDES}
    for name, point in names.items():
        boxes = {side: _box(side, place(point), LETTER * len(name)) for side in SIDES}
        side = min(SIDES, key=lambda side: _cost(boxes[side], taken))
        chosen[side].append(name)
        taken.append(boxes[side])
    return chosen


def _scale(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return low, (high - low) or 1.0


def _box(side: str, point: Point, width: float) -> Box:
    x, y = point
    left, top = {
        "right": (x + GAP, y - LINE / 2),
        "left": (x - GAP - width, y - LINE / 2),
        "above": (x - width / 2, y - GAP - LINE),
        "below": (x - width / 2, y + GAP),
    }[side]
    return left, top, left + width, top + LINE


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """Area of what a box covers, and of what of it is outside the plot."""
    inside = _overlap(box, (-40, -20, WIDTH + 40, HEIGHT + 20))
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - inside + sum(_overlap(box, other) for other in taken)


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
