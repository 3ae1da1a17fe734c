"""Paired tests between methods: which differences the images bear out, and which they do not.

Two methods see the same images, so their difference is far better known than either mRI: intervals
that overlap prove nothing. And who compares ten methods in pairs makes 45 tests, of which two would
be "significant" by luck alone, hence Holm's correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from engine.measures import bootstrap, metrics
from engine.measures.metrics import Gathered, Key
from engine.measures.predictions import Bank
from engine.measures.rows import Arm, Comparison

SIGNIFICANT = 0.05
FIRST, MOST = 1 << 14, 1 << 20  # draws of a p, doubled while Monte-Carlo error decides a claim
BATCH = 1 << 16  # draws that are in memory at a time


@dataclass(frozen=True)
class Family:
    """Tests that are corrected together: p, Holm's corrected p, and Monte-Carlo standard errors of
    both, which are 0 where p is exact; arrays of one shape."""

    p: np.ndarray
    error: np.ndarray
    corrected: np.ndarray
    corrected_error: np.ndarray

    @classmethod
    def of(cls, p: np.ndarray, error: np.ndarray) -> Family:
        """Correct them. An error of a corrected p is how far it moves with all p at once."""
        corrected, off = holm(p), bootstrap.CERTAIN * error
        moved = [np.abs(holm(np.clip(p + sign * off, 0, 1)) - corrected) for sign in (-1, 1)]
        return cls(p, error, corrected, np.maximum(*moved) / bootstrap.CERTAIN)


def compare(
    grid: Gathered, pairs: Sequence[tuple[Arm, Arm]], sets: Sequence[str], *, seed: int = 0
) -> tuple[Comparison, ...]:
    """Each pair's difference in mRI, then on each of the sets; the population: `bootstrap`.

    mRI: paired bootstrap over source images and seeds; its p is that of its percentile interval.
    Draws are made until no corrected p is `undecided`, or there are `MOST`. Sets: McNemar's exact
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
    for arm, against in pairs:
        if arm.model != against.model:
            raise ValueError(f"{arm} and {against} start from different pre-trained models")
    left, right = ([arms.index(pair[side]) for pair in pairs] for side in (0, 1))

    def mri(start: int, stop: int) -> np.ndarray:
        drawn = metrics.mri_draws(grid, arms, sets, start, stop, seed)
        return drawn[:, left] - drawn[:, right]

    def changes(start: int, stop: int) -> np.ndarray:
        drawn = metrics.change_draws(grid, arms, sets, start, stop, seed)
        return drawn[:, :, left] - drawn[:, :, right]

    sampled = [grid.banks[name].sampled for name in sets]
    hits = [_right(grid, name, arms, sets) for name in sets]
    wins = [
        [_wins(grid.banks[name], hit[a] - hit[b]) for name, hit in zip(sets, hits, strict=True)]
        for a, b in zip(left, right, strict=True)
    ]
    exact = np.array([[sign_test(*counts) for counts in row] for row in wins])
    overall = _family(mri, np.full(len(pairs), np.nan))
    on_sets = _family(
        lambda start, stop: changes(start, stop)[:, sampled].swapaxes(1, 2),
        np.where(sampled, np.nan, exact),
    )
    drawn = bootstrap.until(
        changes,
        lambda drawn: metrics.is_known(bootstrap.ends(x).error for x in drawn.sum(axis=1).T),
        first=metrics.RESAMPLES,
        most=metrics.MOST,
    )
    ood = _mean_accuracies(grid, sets)
    rows, rows_of_sets = [], []
    for k, (arm, against) in enumerate(pairs):
        value = fmean(ri[arm].values()) - fmean(ri[against].values())
        rows.append(_row(arm, against, "", value, drawn[:, :, k].sum(axis=1), None, overall, k))
        for j, name in enumerate(sets):
            value = ood[arm, name] - ood[against, name]
            samples = len(sets) * drawn[:, j, k]
            rows_of_sets.append(
                _row(arm, against, name, value, samples, wins[k][j], on_sets, (k, j))
            )
    return (*rows, *rows_of_sets)


def undecided(corrected: Any, error: Any) -> Any:
    """Whether a corrected p is so near `SIGNIFICANT` that other draws might put it on the other
    side; of arrays, an array."""
    return np.abs(corrected - SIGNIFICANT) < bootstrap.CERTAIN * error


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


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values, of any shape, corrected for being several (Holm 1979): at a threshold of 0.05, the
    chance of even one false finding is at most 5%, however they depend on each other."""
    values = np.asarray(p, np.float64).ravel()
    order = np.argsort(values)
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    out = np.empty_like(values)
    out[order] = np.minimum(1.0, raised)
    return out.reshape(np.shape(p))


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
    return np.array([np.sum(sums, axis=0) for sums in each])


def _wins(bank: Bank[Key], net: np.ndarray) -> tuple[int, int]:
    """Sources of which one arm, or the other, gets more images right; `net` [sources]: by how much
    one does."""
    least = 1e-6 * bank.total.min()  # weighted sums that should be equal may differ by rounding
    return int((net > least).sum()), int((net < -least).sum())


def _family(draw: Callable[[int, int], np.ndarray], exact: np.ndarray) -> Family:
    """Tests of which some have an `exact` p; the p of the others, which are NaN there, come from
    draws [B, ...] of their statistics, in the same order."""
    p, error, by_draws = exact.copy(), np.zeros(exact.shape), np.isnan(exact)
    done, stop, counts = 0, FIRST if by_draws.any() else 0, np.zeros((2, by_draws.sum()), int)
    while done < stop:
        for start in range(done, stop, BATCH):
            samples = draw(start, min(start + BATCH, stop))
            counts += bootstrap.tails(samples.reshape(len(samples), -1))
        p[by_draws], error[by_draws] = bootstrap.p_value(counts, stop)
        family = Family.of(p, error)
        open_ = undecided(family.corrected, family.corrected_error).any()
        done, stop = stop, min(2 * stop, MOST) if open_ else stop
    return Family.of(p, error)


def _row(
    arm: Arm,
    against: Arm,
    name: str,
    difference: float,
    samples: np.ndarray,
    wins: tuple[int, int] | None,
    family: Family,
    test: int | tuple[int, int],
) -> Comparison:
    better, worse = wins or (None, None)
    return Comparison(
        *arm,
        *against[1:],
        name,
        difference,
        *bootstrap.ends(samples),
        better,
        worse,
        float(family.p[test]),
        float(family.error[test]),
        float(family.corrected[test]),
        float(family.corrected_error[test]),
    )
