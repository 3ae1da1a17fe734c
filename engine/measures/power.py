"""How many training seeds and images it takes to detect a difference in mRI."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from engine.measures import comparisons
from engine.measures.bootstrap import LEVEL
from engine.measures.metrics import Grid

POWER = 0.8  # probability of detection
MOST = 100  # seeds


@dataclass(frozen=True)
class Errors:
    """Standard deviations in points of a difference in mRI between two rows: over the campaign's
    images, and over seeds of a single training. rows: number of compared rows."""

    images: float
    seeds: float
    rows: int

    @functools.cached_property
    def comparisons(self) -> int:
        """The number of pairs, for which p is corrected."""
        return self.rows * (self.rows - 1) // 2

    def difference(self, seeds: int, images: float = 1, power: float = POWER) -> float:
        """The smallest difference in points that a test of all rows at 5% detects with this power;
        a single seed has a seed probe.

        images: factor of the number of images. Corrected for all pairs, as the first step of Holm's
        procedure. The degrees of freedom are those of `engine.measures.seeds`.
        """
        over_seeds = self.seeds**2 / seeds
        total = max(self.images**2 / images + over_seeds, 1e-12)
        share = max(over_seeds / total, 1e-6)
        freedom = max(seeds - 1, 1) * max(self.rows - 1, 1) / share**2
        least = special.stdtrit(freedom, 1 - (1 - LEVEL) / 2 / self.comparisons)
        return float(np.sqrt(total) * (least + special.stdtrit(freedom, power)))

    def needed(self, points: float, images: float = 1, power: float = POWER) -> int | None:
        """The smallest number of seeds that detects a difference of `points`; None above `MOST`."""
        found = (s for s in range(1, MOST + 1) if self.difference(s, images, power) <= points)
        return next(found, None)


def errors(grid: Grid, arms: Sequence[int], over_seeds: float | None = None) -> Errors | None:
    """The errors of differences between these arms, medians over their pairs; None if the error
    over seeds is unknown, or no two arms are compared.

    over_seeds: replaces the grid's error over seeds.
    """
    means = comparisons.in_mri(grid, arms)
    is_shown = len(grid.seeds) > 1 or grid.again is not None
    if means.keys.empty or not (is_shown or over_seeds is not None):
        return None
    images = (grid.draws["accuracy"] @ means.weights).var(axis=0, dtype=np.float64)
    if over_seeds is None:
        over_seeds = float(np.sqrt(np.median(means.seeds().variance) * len(grid.seeds)))
    return Errors(float(np.sqrt(np.median(images))), over_seeds, len(arms))
