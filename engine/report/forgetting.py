"""Does the distance to a set tell how much fine-tuning on it forgets?

For every downstream set: the drop in accuracy on the upstream set after fine-tuning, against the
distance between the two sets. With eight sets a correlation alone says little, so both Pearson's
and Spearman's come with a bootstrap interval over the sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from engine.measures import bootstrap
from engine.measures.standings import Standings, signed
from engine.report import charts, sections
from engine.report.plot import Plot

if TYPE_CHECKING:
    from engine.measures.distances import Matrix

FEWEST = 3


@dataclass(frozen=True)
class Point:
    """A downstream set: its distance to the upstream set, and what is lost there, in points."""

    name: str
    distance: float
    drop: float


@dataclass(frozen=True)
class Correlation:
    """Over `n` sets, each coefficient with the ends of its 95% interval and the Monte-Carlo
    standard error of these."""

    n: int
    pearson: tuple[float, float, float, float]
    spearman: tuple[float, float, float, float]

    def __str__(self) -> str:
        texts = [
            f"{name} {signed(value, 2)} ({sections.span(*ends, digits=2)})"
            for name, (value, *ends) in (
                ("Spearman", self.spearman),
                ("Pearson", self.pearson),
            )
        ]
        return f"{', '.join(texts)}, {self.n} sets"


def section(one: Standings, found: Matrix, upstream: str) -> str:
    """The part of a report on it: scatter and correlation, and the distances between all sets."""
    spots = points(one, found.row(upstream), upstream)
    told = (
        f"Left: a dot for each set, how far it is from {upstream} against what plain fine-tuning "
        f"on it loses there. "
    )
    try:
        strength = correlation(spots)
        told += f"{strength}; in brackets 95% bootstrap intervals over the sets. "
    except ValueError as error:
        strength = None
        told += f"{str(error).capitalize()}. "
    told = told if spots else ""
    kind = f"{'entropic, debiased, ' if found.eps else ''}{found.certainty()}"
    drawn = f" of at most {found.samples:,} images of each set" if found.samples else ""
    content = (
        f'<div class="pair">{scatter(spots, strength, upstream) if spots else ""}'
        f"{heat_map(found)}</div>"
    )
    return sections.section(
        "Is what is far forgotten more?",
        f"{told}{'Right: d' if spots else 'D'}istances between all sets: optimal transport of the "
        f"pre-trained model's features and classes{drawn} ({kind}), in squared units of the "
        "features.",
        content,
    )


def points(
    one: Standings, distances: Mapping[str, float], upstream: str, method: str = "fine_tune"
) -> list[Point]:
    """A point for each set that the method was fine-tuned on and whose distance is known."""
    line = one.line(method)
    if line is None or upstream not in one.before:
        return []
    return [
        Point(name, distances[name], one.before[upstream] - line.after[name][upstream])
        for name in one.downstreams
        if name != upstream and name in distances and upstream in line.after.get(name, {})
    ]


def correlation(spots: Sequence[Point], *, resamples: int = 50_000, seed: int = 0) -> Correlation:
    """Pearson's and Spearman's coefficient of drop and distance, with percentile intervals.

    Resamples in which one of the two does not vary have no coefficient and are left out. Raises
    ValueError for fewer than three sets, or when distance or drop is the same for all.
    """
    if len(spots) < FEWEST:
        raise ValueError(f"a correlation needs {FEWEST} sets or more, got {len(spots)}")
    x = np.array([[spot.distance for spot in spots]])
    y = np.array([[spot.drop for spot in spots]])
    for name, values in (("distance", x), ("drop", y)):
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise ValueError(f"the {name} is missing or the same for all sets: no correlation")
    draws = np.random.default_rng(seed).integers(0, x.size, (resamples, x.size))
    return Correlation(
        x.size,
        _with_interval(x, y, draws),
        _with_interval(_ranks(x), _ranks(y), draws, _ranks),
    )


def scatter(spots: Sequence[Point], found: Correlation | None, upstream: str) -> str:
    """Distance (x) against the drop upstream (y), a named dot a set, as inline SVG."""
    places = [(spot.distance, spot.drop) for spot in spots]
    plot = Plot(places, [])
    parts = [plot.frame(f"distance to {upstream}", f"drop in accuracy on {upstream}, points")]
    for spot, place in zip(spots, places, strict=True):
        told = f"{spot.name}: distance {spot.distance:.4g}, drop {spot.drop:.1f}"
        parts.append(plot.dot(place, "method", 4, told))
    parts += [plot.name(place, spot.name) for spot, place in zip(spots, places, strict=True)]
    title = "distance against forgetting" + (f": {found}" if found else "")
    return (
        f'<svg class="plot" viewBox="0 0 {plot.WIDE} {plot.HIGH}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def heat_map(found: Matrix) -> str:
    """The distance matrix as inline SVG: the farther, the darker; unconverged pairs are empty."""
    cell, label, head = 46, 120, 96
    largest = float(np.nanmax(np.abs(found.values))) or 1.0
    decimals = min(3, max(0, 2 - math.floor(math.log10(largest))))
    parts = []
    for i, name in enumerate(found.names):
        at = head + i * cell
        parts.append(
            f'<text x="{label - 7}" y="{at + cell / 2 + 4}" text-anchor="end">{escape(name)}</text>'
            f'<text transform="translate({label + i * cell + cell / 2 + 2},{head - 6}) '
            f'rotate(-50)">{escape(name)}</text>'
        )
        for j, other in enumerate(found.names):
            value = found.values[i, j]
            known = math.isfinite(value)
            kind, opacity = charts.tint(value, largest) if known else ("own", 1)
            text = f"{value:.{decimals}f}" if known else ""
            gap, off = found.gaps[i, j], found.marginal_errors[i, j]
            told = f"{value:.6g}, gap {gap:.1e}, marginal error {off:.1e}"
            told = told if known else "did not converge"
            x = label + j * cell
            parts.append(
                f"<g><title>{escape(name)} to {escape(other)}: {told}</title>"
                f'<rect class="{kind}" fill-opacity="{opacity}" x="{x + 0.5}" y="{at + 0.5}" '
                f'width="{cell - 1}" height="{cell - 1}"/><text class="number" '
                f'x="{x + cell / 2}" y="{at + cell / 2 + 3.5}" text-anchor="middle">{text}</text>'
                "</g>"
            )
    wide, high = (offset + len(found.names) * cell + 4 for offset in (label, head))
    return (
        f'<svg class="heat" viewBox="0 0 {wide} {high}" role="img" '
        f'aria-label="distances between sets">{"".join(parts)}</svg>'
    )


def _with_interval(
    x: np.ndarray,
    y: np.ndarray,
    draws: np.ndarray,
    again: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[float, float, float, float]:
    value = float(_coefficients(x, y)[0])
    drawn_x, drawn_y = x[0][draws], y[0][draws]
    if again is not None:
        drawn_x, drawn_y = again(drawn_x), again(drawn_y)
    drawn = _coefficients(drawn_x, drawn_y)
    low, high, error = bootstrap.ends(drawn[~np.isnan(drawn)])
    return value, low, high, error


def _coefficients(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's coefficient of every row; NaN where one of the two does not vary."""
    scaled = []
    for values in (x, y):
        apart = values - values.mean(1, keepdims=True)
        # What is left of equal numbers is rounding, of their own size whatever the unit.
        apart[np.ptp(values, axis=1) <= 1e-12 * np.abs(values).max(1)] = np.nan
        scaled.append(apart / np.sqrt((apart**2).sum(1, keepdims=True)))
    return (scaled[0] * scaled[1]).sum(1)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks within every row, ties sharing their mean."""
    less = (values[:, None, :] < values[:, :, None]).sum(2)
    equal = (values[:, None, :] == values[:, :, None]).sum(2)
    return less + (equal + 1) / 2
