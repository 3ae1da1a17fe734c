"""How many training seeds it takes to detect a difference in mRI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.measures import comparisons, seeds
from engine.measures.metrics import Grid
from engine.measures.seeds import SeedError

MOST = 100  # seeds


@dataclass(frozen=True)
class Errors:
    """Standard deviations in points of a difference in mRI between two rows: over the campaign's
    images, and over seeds of a single training. rows: number of compared rows."""

    images: float
    seeds: float
    rows: int

    @property
    def comparisons(self) -> int:
        """The number of pairs, for which p is corrected."""
        return self.rows * (self.rows - 1) // 2

    def difference(self, count: int) -> float:
        """The smallest difference in points that a test of all rows with this number of seeds
        detects (`seeds.least_difference`); a single seed has a seed replicate."""
        freedom = max(count - 1, 1) * max(self.rows - 1, 1)
        error = SeedError(np.array([self.seeds**2 / count]), np.array([freedom]))
        least = seeds.least_difference(np.array([self.images**2]), error, self.comparisons)
        return float(least[0])

    def needed(self, points: float) -> int | None:
        """The smallest number of seeds that detects a difference of `points`; None above `MOST`."""
        found = (count for count in range(1, MOST + 1) if self.difference(count) <= points)
        return next(found, None)


def errors(grid: Grid, arms: Sequence[int]) -> Errors | None:
    """The errors of differences between these arms, medians over their pairs; None if the error
    over seeds is unknown, or no two arms are compared."""
    means = comparisons.in_mri(grid, arms)
    if means.keys.empty or (len(grid.seeds) == 1 and grid.again is None):
        return None
    images = (grid.draws["accuracy"] @ means.weights).var(axis=0, dtype=np.float64)
    over_seeds = np.median(means.seeds().variance) * len(grid.seeds)
    return Errors(float(np.sqrt(np.median(images))), float(np.sqrt(over_seeds)), len(arms))
