"""Paired tests between methods: which differences are significant.

Two methods see the same images, so their difference is known far better than either mRI: intervals
of mRI that overlap prove nothing. Ten methods make 45 pairs, of which two would be significant by
chance alone, hence Holm's correction.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas

from engine.measures.metrics import Grid, Means

SIGNIFICANT = 0.05


def compare(grid: Grid, arms: Sequence[int]) -> pandas.DataFrame:
    """The difference of every two arms of a pre-trained model and setting (places in `Grid.arms`):
    in mRI, then in mean accuracy on each set, over the models that were trained on others; the
    population: `bootstrap`.

    Columns: arm and against, evaluated_on (empty: mRI), difference_pts and its ends, p, and
    p_corrected by Holm: over all pairs for mRI, over all pairs and sets for sets.
    """
    pairs, rows = _pairs(grid, arms), grid.ri_cells
    on_sets = grid.mean(rows, ["arm", "evaluated_on"])
    names = [name for name in grid.sets if (rows["evaluated_on"] == name).any()]
    families = in_mri(grid, arms), _differences(on_sets, pairs, names)
    return pandas.concat(map(_tested, families), ignore_index=True)


def in_mri(grid: Grid, arms: Sequence[int]) -> Means:
    """The difference in mRI of every two arms of a pre-trained model and setting."""
    overall = Means(grid, grid.mri.keys.assign(evaluated_on=""), grid.mri.weights)
    return _differences(overall, _pairs(grid, arms), [""])


def _pairs(grid: Grid, arms: Sequence[int]) -> list[tuple[int, int]]:
    alike = [(arm.model, arm.setting) for arm in grid.arms]
    return [(a, b) for a, b in itertools.combinations(arms, 2) if alike[a] == alike[b]]


def _differences(means: Means, pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> Means:
    """The difference of two means, of each pair and name."""
    place = {key: k for k, key in enumerate(means.keys.itertuples(index=False, name=None))}
    tests = [(arm, against, name) for arm, against in pairs for name in names]
    left = np.array([place[arm, name] for arm, _, name in tests], int)
    right = np.array([place[against, name] for _, against, name in tests], int)
    keys = pandas.DataFrame(tests, columns=["arm", "against", "evaluated_on"])
    return Means(means.grid, keys, means.weights[:, left] - means.weights[:, right])


def _tested(family: Means) -> pandas.DataFrame:
    """A family of tests: a row a difference."""
    tested = family.tested("difference_pts")
    return tested.assign(p_corrected=holm(tested["p"].to_numpy()))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [K], corrected for multiple testing (Holm 1979): at a threshold of 0.05 the chance
    of any false finding is at most 5%, however the tests depend on each other."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(1.0, corrected)
