"""Does the distance to a set tell how much fine-tuning on it forgets?

For every downstream set: the drop in accuracy on the upstream set after fine-tuning, against the
distance between the two sets. With eight sets a correlation alone says little, so both Pearson's
and Spearman's come with a bootstrap interval over the sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.measures import bootstrap
from engine.measures.standings import Standings, signed
from engine.report import display

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
            f"{name} {signed(value, 2)} ({display.range_text(*ends, digits=2)})"
            for name, (value, *ends) in (
                ("Spearman", self.spearman),
                ("Pearson", self.pearson),
            )
        ]
        return f"{', '.join(texts)}, {self.n} sets"


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
