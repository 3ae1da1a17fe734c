"""A scatter plot: axes with round numbers, and names that find a place of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

SMALLEST = 1e-30
Spot = tuple[float, float]
Box = tuple[float, float, float, float]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about `count` of them, from the last at or below low to the first at or
    above high: their ends make an axis that holds both."""
    size = max(abs(low), abs(high))
    size = size if size > SMALLEST else 1.0
    if high - low <= 1e-4 * size:  # numbers would print alike
        low, high = low - size / 10, high + size / 10
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


class Plot:
    """A scatter plot's frame, and names that look for a place where they cover nothing."""

    WIDE, HIGH = 560, 400
    LEFT, RIGHT, TOP, BOTTOM = 44, 60, 26, 44

    def __init__(self, spots: Sequence[Spot], curves: Sequence[Sequence[Spot]]) -> None:
        xs, ys = zip(*spots, *(spot for curve in curves for spot in curve), strict=True)
        self.x_ticks, self.y_ticks = ticks(min(xs), max(xs), 6), ticks(min(ys), max(ys), 6)
        self.taken = [self._around(*self.at(spot), 6) for spot in spots]
        for curve in curves:
            for (x0, y0), (x1, y1) in pairwise(map(self.at, curve)):
                for t in (0, 0.25, 0.5, 0.75, 1):
                    self.taken.append(self._around(x0 + t * (x1 - x0), y0 + t * (y1 - y0), 4))

    @staticmethod
    def _around(x: float, y: float, radius: float) -> Box:
        return x - radius, y - radius, x + radius, y + radius

    def at(self, spot: Spot) -> tuple[float, float]:
        """Where a spot lies in the drawing."""
        x = (spot[0] - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        y = (spot[1] - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return (
            self.LEFT + x * (self.WIDE - self.LEFT - self.RIGHT),
            self.HIGH - self.BOTTOM - y * (self.HIGH - self.TOP - self.BOTTOM),
        )

    def frame(self, x_title: str, y_title: str) -> str:
        """Grid, numbers and titles of the axes."""
        parts = [f'<text class="strong" x="0" y="12">{escape(y_title)}</text>']
        right, floor = self.WIDE - self.RIGHT, self.HIGH - self.BOTTOM
        parts.append(
            f'<text class="strong" x="{right}" y="{self.HIGH - 6}" text-anchor="end">'
            f"{escape(x_title)}</text>"
        )
        for tick in self.x_ticks:
            x, _ = self.at((tick, self.y_ticks[0]))
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.TOP}" y2="{floor}"/>'
                f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{tick:g}</text>'
            )
        for tick in self.y_ticks:
            _, y = self.at((self.x_ticks[0], tick))
            parts.append(
                f'<line class="grid" x1="{self.LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{self.LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )
        return "".join(parts)

    def dot(self, spot: Spot, kind: str, radius: float, title: str) -> str:
        """A mark, and what a pointer that rests on it is told."""
        x, y = self.at(spot)
        return (
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{escape(title)}</title></circle>"
        )

    def name(self, spot: Spot, text: str) -> str:
        """A spot's name, where it hides least."""
        x, y = self.at(spot)
        wide, high = 7.0 * len(text), 11
        places = [
            (x + 9, y - 5),
            (x - 9 - wide, y - 5),
            (x - wide / 2, y - 19),
            (x - wide / 2, y + 8),
        ]
        places += [(x + 6, y - 18), (x + 6, y + 7), (x - 6 - wide, y - 18), (x - 6 - wide, y + 7)]
        boxes = [(left, top, left + wide, top + high) for left, top in places]
        box = min(boxes, key=self._cover)
        self.taken.append(box)
        return f'<text class="name" x="{box[0]:.1f}" y="{box[1] + 9:.1f}">{escape(text)}</text>'

    def _cover(self, box: Box) -> float:
        """Area of what the box hides, and of what of it lies outside the frame."""
        inside = _overlap(box, (self.LEFT, self.TOP, self.WIDE, self.HIGH - self.BOTTOM))
        area = (box[2] - box[0]) * (box[3] - box[1])
        return area - inside + sum(_overlap(box, other) for other in self.taken)


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)
