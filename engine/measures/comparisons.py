"""Paired tests between methods: which differences are significant, and how many seeds it takes.

Two methods see the same images, so their difference has less variance than either mRI, and
overlapping intervals of mRI show nothing. Ten methods have 45 pairs, of which about two would be
significant by chance; Holm's adjustment accounts for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas

from engine.measures import paired
from engine.measures.metrics import Grid, Means
from engine.measures.paired import ImageError
from engine.measures.seeds import SeedError

MOST = 100  # seeds
COMPARED = [  # columns of `compare_pairs`
    *("a", "b", "set", "quantity", "a_mean", "b_mean", "difference", "low", "high"),
    *("p", "adjusted_p", "minimum_detectable_difference", "images", "only_a", "only_b"),
    *("sources", "seeds", "test", "notes"),
]


def compare(grid: Grid, arms: Sequence[int]) -> pandas.DataFrame:
    """Differences between all pairs of arms (indices in `Grid.arms`) of a pretrained model and
    setting: in mRI, then in mean accuracy on each dataset over the models not trained on it.
    Population: `bootstrap`.

    Columns: arm and against, evaluated_on (empty: mRI), difference_pts and its bounds, p, and
    adjusted_p by Holm: over all pairs for mRI, over all pairs and datasets for datasets.
    """
    tables = []
    for means, names in _means(grid, grid.ri_cells):
        table = _differences(means, _pairs(grid, arms), names).tested("difference_pts")
        tables.append(table.assign(adjusted_p=holm(table["p"].to_numpy())))
    return pandas.concat(tables, ignore_index=True)


def compare_pairs(
    grid: Grid, pairs: Sequence[tuple[int, int]], shown: Sequence[int], downstream: str = ""
) -> pandas.DataFrame:
    """The differences b - a of pairs of arms (a, b): in mRI, then in mean accuracy on each dataset
    as in `compare`; with `downstream`, in RI and accuracy after fine-tuning on that dataset.

    shown: arms over which the variance over seeds is pooled, as far as they are alike. Columns:
    `COMPARED`, where a and b are arms. adjusted_p is over the pairs, on datasets over pairs and
    datasets.
    """
    cells = grid.ri_cells
    if downstream:  # a replicate is about the mean over columns
        grid, cells = replace(grid, again=None), cells[cells["downstream"] == downstream]
    alike = [(arm.model, arm.setting) for arm in grid.arms]
    wanted = {(alike[a], alike[b]) for a, b in pairs}
    family = {frozenset(pair): pair for pair in pairs}
    for a, b in itertools.product(shown, shown):
        if a != b and (alike[a], alike[b]) in wanted:
            family.setdefault(frozenset((a, b)), (a, b))
    tables = []
    for means, names in _means(grid, cells):
        count = len(pairs) * len(names)
        differences = _differences(means, [(b, a) for a, b in family.values()], names)
        variances = [differences.images, differences.seeds()]
        table = differences.tested("difference_pts")
        table.columns = ["b", "a", "set", "difference", "low", "high", "p"]
        table = table.assign(
            minimum_detectable_difference=paired.minimum_detectable_difference(variances, count),
            sources=differences.images.freedom + 1,
        )[:count]
        keys = means.keys.itertuples(index=False, name=None)
        values = dict(zip(keys, means.values(), strict=True))
        for side in "ab":
            keys = zip(table[side], table["set"], strict=True)
            table[f"{side}_mean"] = [values[key] for key in keys]
        tables.append(table.assign(adjusted_p=holm(table["p"].to_numpy())))
    table = pandas.concat(tables, ignore_index=True)
    images = cells.drop_duplicates("evaluated_on").set_index("evaluated_on")["images"]
    images[""] = images.sum()
    is_replicated = len(grid.seeds) == 1 and grid.again is not None
    quantity = "RI, points" if downstream else "mRI, points"
    return table.assign(
        quantity=np.where(table["set"] == "", quantity, "accuracy, percent"),
        images=table["set"].map(images).astype(int),
        only_a=0,
        only_b=0,
        seeds=len(grid.seeds),
        test=f"{paired.TEST} with seed replicates" if is_replicated else paired.TEST,
        notes="",
    )[COMPARED]


def _pairs(grid: Grid, arms: Sequence[int]) -> list[tuple[int, int]]:
    alike = [(arm.model, arm.setting) for arm in grid.arms]
    return [(a, b) for a, b in itertools.combinations(arms, 2) if alike[a] == alike[b]]


def _means(grid: Grid, cells: pandas.DataFrame) -> list[tuple[Means, list[str]]]:
    """The means of arms that are compared, with the values of `evaluated_on`: RI or mRI (empty),
    and accuracy on each dataset."""
    overall = grid.mean(cells, ["arm"], of="change")
    overall = replace(overall, keys=overall.keys.assign(evaluated_on=""))
    names = [name for name in grid.sets if (cells["evaluated_on"] == name).any()]
    return [(overall, [""]), (grid.mean(cells, ["arm", "evaluated_on"]), names)]


def _differences(means: Means, pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> Means:
    """The difference of two means for each pair and name."""
    place = {key: k for k, key in enumerate(means.keys.itertuples(index=False, name=None))}
    tests = [(arm, against, name) for arm, against in pairs for name in names]
    left = np.array([place[arm, name] for arm, _, name in tests], int)
    right = np.array([place[against, name] for _, against, name in tests], int)
    keys = pandas.DataFrame(tests, columns=["arm", "against", "evaluated_on"])
    return Means(means.grid, keys, means.weights[:, left] - means.weights[:, right])


def alike_groups(arms: Sequence[int], differing: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The largest groups of arms without a differing pair, in the order of `arms`.

    Groups overlap: `a` may differ from neither `b` nor `c`, and `b` from `c`. Insert and absorb
    (Piepho 2004).
    """
    groups = {frozenset(arms)}
    for pair in map(frozenset, differing):
        split = {group - {arm} for group in groups if pair <= group for arm in pair}
        groups = {group for group in groups if not pair <= group} | split
        groups = {group for group in groups if not any(group < other for other in groups)}
    return sorted(
        ([arm for arm in arms if arm in group] for group in groups),
        key=lambda group: [arms.index(arm) for arm in group],
    )


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [K], adjusted for multiple testing (Holm 1979): at a threshold of 0.05, the
    probability of any false positive is at most 5% under any dependence."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(1.0, adjusted)


@dataclass(frozen=True)
class Errors:
    """Standard deviations in points of a difference in mRI between two rows: over the campaign's
    images, and over seeds of a single training. rows: number of compared rows. sources: effective
    number of source images."""

    images: float
    seeds: float
    rows: int
    sources: float = 1e12

    @property
    def comparisons(self) -> int:
        """The number of pairs, for which p is adjusted."""
        return self.rows * (self.rows - 1) // 2

    def difference(self, count: int) -> float:
        """The smallest difference in points that a test of all rows with this number of seeds
        detects (`paired.minimum_detectable_difference`); a single seed has a seed replicate."""
        freedom = max(count - 1, 1) * max(self.rows - 1, 1)
        error = SeedError(np.array([self.seeds**2 / count]), np.array([freedom]))
        images = ImageError(np.array([self.images**2]), np.array([self.sources - 1]))
        least = paired.minimum_detectable_difference([images, error], self.comparisons)
        return float(least[0])

    def needed(self, points: float) -> int | None:
        """The smallest number of seeds that detects a difference of `points`; None above `MOST`."""
        found = (count for count in range(1, MOST + 1) if self.difference(count) <= points)
        return next(found, None)


def errors(grid: Grid, arms: Sequence[int]) -> Errors | None:
    """The errors of differences between these arms, medians over their pairs; None if the error
    over seeds is unknown, or no two arms are compared."""
    (overall, names), _ = _means(grid, grid.ri_cells)
    means = _differences(overall, _pairs(grid, arms), names)
    if means.keys.empty or (len(grid.seeds) == 1 and grid.again is None):
        return None
    over_seeds = np.median(means.seeds().variance) * len(grid.seeds)
    images = float(np.sqrt(np.median(means.images.variance)))
    sources = float(np.median(means.images.freedom)) + 1
    return Errors(images, float(np.sqrt(over_seeds)), len(arms), sources)
