"""Paired tests between methods: which differences are significant.

Two methods see the same images, so their difference has less variance than either mRI, and
overlapping intervals of mRI show nothing. Ten methods have 45 pairs, of which about two would be
significant by chance; Holm's correction accounts for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas

from engine.measures import seeds
from engine.measures.metrics import Grid, Means, equal_column_weights

SIGNIFICANT = 0.05
COMPARED = [  # columns of `compare_pairs`
    *("a", "b", "set", "quantity", "a_mean", "b_mean", "difference", "low", "high"),
    *("p", "p_corrected", "least", "images", "only_a", "only_b", "sources", "seeds", "test"),
]


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


def compare_pairs(
    grid: Grid, pairs: Sequence[tuple[int, int]], shown: Sequence[int], downstream: str = ""
) -> pandas.DataFrame:
    """The differences b - a of pairs of arms (a, b): in mRI, then in mean accuracy on each dataset
    as in `compare`; with `downstream`, in RI and accuracy after fine-tuning on that dataset.

    shown: arms over which the variance over seeds is pooled, as far as they are alike. Columns:
    `COMPARED`, where a and b are arms. p_corrected is over the pairs, on datasets over pairs and
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
    overall = grid.mean(cells, ["arm"], equal_column_weights(cells), of="change")
    overall = replace(overall, keys=overall.keys.assign(evaluated_on=""))
    on_sets = grid.mean(cells, ["arm", "evaluated_on"])
    names = [name for name in grid.sets if (cells["evaluated_on"] == name).any()]
    of_set = cells.drop_duplicates("evaluated_on").set_index("evaluated_on")[["n", "sources"]]
    of_set.loc[""] = of_set["n"].sum(), of_set["sources"].min()
    is_t = "t test" if len(grid.seeds) > 1 else "t test with seed replicates"
    test = is_t if len(grid.seeds) > 1 or grid.again is not None else "normal test"
    tables = []
    for means, of_family in ((overall, [""]), (on_sets, names)):
        count = len(pairs) * len(of_family)
        differences = _differences(means, [(b, a) for a, b in family.values()], of_family)
        over_images = (grid.draws["accuracy"] @ differences.weights).var(axis=0, dtype=np.float64)
        least = seeds.least_difference(over_images, differences.seeds(), count)
        table = differences.tested("difference_pts").assign(least=least)[:count]
        table.columns = ["b", "a", "set", "difference", "low", "high", "p", "least"]
        values = dict(
            zip(means.keys.itertuples(index=False, name=None), means.values(), strict=True)
        )
        for side in "ab":
            keys = zip(table[side], table["set"], strict=True)
            table[f"{side}_mean"] = [values[key] for key in keys]
        tables.append(table.assign(p_corrected=holm(table["p"].to_numpy())))
    table = pandas.concat(tables, ignore_index=True)
    quantity = "RI, points" if downstream else "mRI, points"
    return table.assign(
        quantity=np.where(table["set"] == "", quantity, "accuracy, percent"),
        images=table["set"].map(of_set["n"]).astype(int),
        only_a=0,
        only_b=0,
        sources=table["set"].map(of_set["sources"]),
        seeds=len(grid.seeds),
        test=test,
    )[COMPARED]


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
