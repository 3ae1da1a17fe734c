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
from engine.measures.rows import Arm

SIGNIFICANT = 0.05


def compare(grid: Grid, pairs: Sequence[tuple[Arm, Arm]]) -> pandas.DataFrame:
    """Each pair's difference in mRI, then in mean accuracy on each of the sets that a model was
    trained elsewhere than on; the population: `bootstrap`.

    Columns: arm and against (places in `Grid.arms`), evaluated_on (empty: mRI), difference in
    points and its ends, p, and p_corrected by Holm: over all pairs for mRI, over all pairs and sets
    for sets. Raises ValueError for a pair of different pre-trained models or settings.
    """
    for arm, against in pairs:
        if arm.model != against.model:
            raise ValueError(f"{arm} and {against} start from different pre-trained models")
        if arm.setting != against.setting:
            raise ValueError(f"{arm} and {against} have different settings")
    rows = grid.elsewhere
    on_sets = grid.mean(rows, ["arm", "evaluated_on"])
    overall = Means(grid, grid.mri.keys.assign(evaluated_on=""), grid.mri.weights)
    names = [name for name in grid.sets if (rows["evaluated_on"] == name).any()]
    return pandas.concat(
        [_family(overall, pairs, [""]), _family(on_sets, pairs, names)], ignore_index=True
    )


def _family(
    means: Means, pairs: Sequence[tuple[Arm, Arm]], names: Sequence[str]
) -> pandas.DataFrame:
    """A family of tests: a row a pair and name, of the difference of two means."""
    number = {arm: k for k, arm in enumerate(means.grid.arms)}
    place = {key: k for k, key in enumerate(means.keys.itertuples(index=False, name=None))}
    tests = [(number[a], number[b], name) for a, b in pairs for name in names]
    keys = pandas.DataFrame(tests, columns=["arm", "against", "evaluated_on"])
    left = means.pick(np.array([place[arm, name] for arm, _, name in tests], int))
    right = means.pick(np.array([place[arm, name] for _, arm, name in tests], int))
    apart = left.less(right, keys)
    p = apart.p()
    return apart.table("difference").assign(p=p, p_corrected=holm(p))


def all_pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Every two arms of a setting that start from the same pre-trained model."""
    pairs = itertools.combinations(arms, 2)
    return [(a, b) for a, b in pairs if (a.model, a.setting) == (b.model, b.setting)]


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [K], corrected for multiple testing (Holm 1979): at a threshold of 0.05 the chance
    of any false finding is at most 5%, however the tests depend on each other."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(1.0, corrected)
