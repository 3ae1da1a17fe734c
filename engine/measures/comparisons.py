"""Paired tests between methods: which differences are significant.

Two methods see the same images, so their difference has less variance than either mRI, and
overlapping intervals of mRI show nothing. Ten methods have 45 pairs, of which about two would be
significant by chance; Holm's correction accounts for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas

from engine.measures.metrics import Grid, Means

SIGNIFICANT = 0.05


def compare(grid: Grid, arms: Sequence[int]) -> pandas.DataFrame:
    """Differences between all pairs of arms (indices in `Grid.arms`) of a pretrained model and
    setting: in mRI, then in mean accuracy on each dataset over the models not trained on it.
    Population: `bootstrap`.

    Columns: arm and against, evaluated_on (empty: mRI), difference_pts and its bounds, p, and
    p_corrected by Holm: over all pairs for mRI, over all pairs and datasets for datasets.
    """
    pairs, rows = _pairs(grid, arms), grid.ri_cells
    on_sets = grid.mean(rows, ["arm", "evaluated_on"])
    names = [name for name in grid.sets if (rows["evaluated_on"] == name).any()]
    families = in_mri(grid, arms), _differences(on_sets, pairs, names)
    return pandas.concat(map(_tested, families), ignore_index=True)


def in_mri(grid: Grid, arms: Sequence[int]) -> Means:
    """Differences in mRI between all pairs of arms of a pretrained model and setting."""
    overall = Means(grid, grid.mri.keys.assign(evaluated_on=""), grid.mri.weights)
    return _differences(overall, _pairs(grid, arms), [""])


def _pairs(grid: Grid, arms: Sequence[int]) -> list[tuple[int, int]]:
    alike = [(arm.model, arm.setting) for arm in grid.arms]
    return [(a, b) for a, b in itertools.combinations(arms, 2) if alike[a] == alike[b]]


def _differences(means: Means, pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> Means:
    """The difference of two means for each pair and name."""
    place = {key: k for k, key in enumerate(means.keys.itertuples(index=False, name=None))}
    tests = [(arm, against, name) for arm, against in pairs for name in names]
    left = np.array([place[arm, name] for arm, _, name in tests], int)
    right = np.array([place[against, name] for _, against, name in tests], int)
    keys = pandas.DataFrame(tests, columns=["arm", "against", "evaluated_on"])
    return Means(means.grid, keys, means.weights[:, left] - means.weights[:, right])


def _tested(family: Means) -> pandas.DataFrame:
    """A family of tests, one row per difference."""
    tested = family.tested("difference_pts")
    return tested.assign(p_corrected=holm(tested["p"].to_numpy()))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [K], corrected for multiple testing (Holm 1979): at a threshold of 0.05, the
    probability of any false positive is at most 5% under any dependence."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(1.0, corrected)
