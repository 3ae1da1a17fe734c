"""Paired tests between methods: which differences are significant.

Two methods see the same images, so their difference is known far better than either mRI: intervals
of mRI that overlap prove nothing. Ten methods make 45 pairs, of which two would be significant by
chance alone, hence Holm's correction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from engine.measures import bootstrap, metrics
from engine.measures.metrics import Grid, Weights
from engine.measures.rows import Arm, Comparison

SIGNIFICANT = 0.05


def compare(
    grid: Grid,
    pairs: Sequence[tuple[Arm, Arm]],
    sets: Sequence[str],
    downstreams: Sequence[str] = (),
) -> tuple[Comparison, ...]:
    """Each pair's difference in mRI, then in mean accuracy on each of the sets that a model was
    trained elsewhere than on; the population: `bootstrap`. downstreams: as in `metrics.summarise`.

    p is corrected over all pairs for mRI, and over all pairs and sets for sets. Raises ValueError
    for a pair of different pre-trained models or settings, or an arm that lacks a column.
    """
    if not pairs:
        return ()
    downstreams = downstreams or sets
    ri = metrics.improvements(grid.accuracy, sets, downstreams)
    arms = list(dict.fromkeys(arm for pair in pairs for arm in pair))
    for arm in arms:
        if set(ri.get(arm, ())) != set(downstreams):
            raise ValueError(f"{arm} was not fine-tuned on every set: it has no mRI to compare")
    for arm, against in pairs:
        if arm.model != against.model:
            raise ValueError(f"{arm} and {against} start from different pre-trained models")
        if arm.setting != against.setting:
            raise ValueError(f"{arm} and {against} have different settings")
    on_sets = list(metrics.weights_in_mri(sets, downstreams))
    overall = _rows(grid, pairs, [""], lambda arm, _: metrics.in_mri(arm, sets, downstreams))
    return (
        *overall,
        *_rows(grid, pairs, on_sets, lambda arm, name: metrics.in_mean(arm, name, downstreams)),
    )


def _rows(
    grid: Grid,
    pairs: Sequence[tuple[Arm, Arm]],
    names: Sequence[str],
    weights: Callable[[Arm, str], Weights],
) -> list[Comparison]:
    """A family of tests: a row a pair and name, of the difference of two weighted sums."""
    arms = list(dict.fromkeys(arm for pair in pairs for arm in pair))
    sums = [weights(arm, name) for arm in arms for name in names]
    keys = {key: k for k, key in enumerate(itertools.product(arms, names))}
    tests = [(arm, against, name) for arm, against in pairs for name in names]
    left = [keys[arm, name] for arm, _, name in tests]
    right = [keys[against, name] for _, against, name in tests]

    def differences(values: np.ndarray) -> np.ndarray:
        return values[..., left] - values[..., right]

    matrix, draws = grid.draws.matrix(sums), grid.draws
    values = differences(grid.values(sums))
    low, high = bootstrap.interval(differences(draws.accuracy @ matrix))
    p = bootstrap.p_values(
        values, differences(draws.over_images @ matrix), differences(draws.by_seed @ matrix)
    )
    numbers = np.stack([values, low, high, p, holm(p)], axis=1).tolist()
    rows = []
    for (arm, against, name), (value, low, high, p, corrected) in zip(tests, numbers, strict=True):
        other = against.method, against.variant, against.alpha
        rows.append(Comparison(*arm, *other, name, value, low, high, p, corrected))
    return rows


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
