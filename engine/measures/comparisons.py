"""Paired tests between methods: which differences the images bear out, and which they do not.

Two methods see the same images, so their difference is far better known than either mRI: intervals
that overlap prove nothing. And who compares ten methods in pairs makes 45 tests, of which two would
be "significant" by luck alone, hence Holm's correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from engine.measures import bootstrap, metrics
from engine.measures.metrics import Gathered, Key
from engine.measures.predictions import Bank
from engine.measures.rows import Arm, Comparison

SIGNIFICANT = 0.05
RESAMPLES, RESAMPLES_PER_PAIR = 10_000, 100


def compare(
    grid: Gathered,
    pairs: Sequence[tuple[Arm, Arm]],
    sets: Sequence[str],
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Each pair's difference in mRI, then on each of the sets; the population: `bootstrap`.

    mRI: paired bootstrap over source images and seeds; its p is that of its percentile interval.
    `resamples` defaults to so many that each corrected p can reach 0.02. Sets: McNemar's exact
    test (McNemar 1947) with sources in place of images: each of them is a win for the method whose
    models, trained on the other sets, get more of its images right. With one model, one image a
    source and two sets, that is McNemar's own test. It takes seeds as given. It counts images
    alike, so of a sample, whose images have weights, p is that of the percentile interval instead.

    Raises ValueError for a pair of two pre-trained models, or an arm that lacks a column.
    """
    if not pairs:
        return ()
    arms = list(dict.fromkeys(arm for pair in pairs for arm in pair))
    ri = metrics.improvements(grid.accuracy, sets)
    for arm in arms:
        if set(ri.get(arm, ())) != set(sets):
            raise ValueError(f"{arm} was not fine-tuned on every set: it has no mRI to compare")
    for one, other in pairs:
        if one.model != other.model:
            raise ValueError(f"{one} and {other} start from different pre-trained models")
    sampled = {name for name in sets if grid.banks[name].sampled}
    tests = len(pairs) * (len(sets) if sampled else 1)
    count = resamples or max(RESAMPLES, RESAMPLES_PER_PAIR * tests)
    drawn = metrics.change_draws(grid, arms, sets, resamples=count, seed=seed)
    mri = np.sum(list(drawn.values()), axis=0)
    ood = _mean_accuracies(grid, sets)
    right = {name: _right(grid, name, arms, sets) for name in sets}
    overall, on_sets = [], []
    for one, other in pairs:
        a, b = arms.index(one), arms.index(other)
        value = fmean(ri[one].values()) - fmean(ri[other].values())
        samples = mri[:, a] - mri[:, b]
        p = bootstrap.p_value(samples)
        overall.append(_row(one, other, "", value, samples, None, p))
        for name in sets:
            samples = len(sets) * (drawn[name][:, a] - drawn[name][:, b])
            counts = _wins(grid.banks[name], right[name][a] - right[name][b])
            value = ood[one, name] - ood[other, name]
            p = bootstrap.p_value(samples) if name in sampled else sign_test(*counts)
            on_sets.append(_row(one, other, name, value, samples, counts, p))
    return (*_corrected(overall), *_corrected(on_sets))


def all_pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Every two arms that start from the same pre-trained model."""
    return [
        (one, other)
        for k, one in enumerate(arms)
        for other in arms[k + 1 :]
        if one.model == other.model
    ]


def with_one(arms: Sequence[Arm], method: str) -> list[tuple[Arm, Arm]]:
    """Every arm against each of one method; ValueError where there is none of it."""
    if method not in (known := dict.fromkeys(arm.method for arm in arms)):
        raise ValueError(
            f"there is no method {method!r} to compare with; there are {', '.join(known)}"
        )
    pairs = [(b, a) if a.method == method else (a, b) for a, b in all_pairs(arms)]
    return [(a, b) for a, b in pairs if b.method == method]


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p of as uneven a split if either side were as likely: McNemar's test on
    discordant pairs. Scales to millions of them (SciPy's binomtest gives the same)."""
    if better == worse:
        return 1.0
    n, k = better + worse, min(better, worse)
    log_p = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    below = np.arange(k, 0, -1)
    tail = math.exp(log_p) * (1 + np.cumprod(below / (n - below + 1)).sum())
    return min(1.0, 2 * float(tail))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values corrected for being several (Holm 1979): at a threshold of 0.05, the chance of even
    one false finding among them is at most 5%, however they depend on each other."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values)
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    out = np.empty_like(values)
    out[order] = np.minimum(1.0, raised)
    return out


def _mean_accuracies(grid: Gathered, sets: Sequence[str]) -> dict[tuple[Arm, str], float]:
    """Mean accuracy of an arm's models on a set that they were not trained on."""
    found: dict[tuple[Arm, str], list[float]] = {}
    for row in grid.accuracy:
        if row.downstream in sets and not row.on_its_own:
            found.setdefault((row.arm, row.evaluated_on), []).append(row.accuracy)
    return {key: fmean(values) for key, values in found.items()}


def _right(grid: Gathered, name: str, arms: Sequence[Arm], sets: Sequence[str]) -> np.ndarray:
    """[arms, sources] weight of a set's images that an arm's models, trained elsewhere, get right:
    summed over models and seeds."""
    bank, others = grid.banks[name], [downstream for downstream in sets if downstream != name]
    each = [[bank.sums((arm, i), grid.seeds).sum(axis=0) for i in others] for arm in arms]
    return np.array([np.sum(mine, axis=0) for mine in each])


def _wins(bank: Bank[Key], net: np.ndarray) -> tuple[int, int]:
    """Sources of which one arm, or the other, gets more images right; `net` [sources]: by how much
    one does."""
    least = 1e-6 * bank.total.min()  # weighted sums that should be equal may differ by rounding
    return int((net > least).sum()), int((net < -least).sum())


def _row(
    one: Arm,
    other: Arm,
    name: str,
    difference: float,
    samples: np.ndarray,
    counts: tuple[int, int] | None,
    p: float,
) -> Comparison:
    low, high = bootstrap.interval(samples)
    better, worse = counts or (None, None)
    return Comparison(*one, *other[1:], name, difference, low, high, better, worse, p, p)


def _corrected(rows: Sequence[Comparison]) -> list[Comparison]:
    corrected = holm([row.p for row in rows])
    return [replace(row, p_corrected=float(p)) for row, p in zip(rows, corrected, strict=True)]
