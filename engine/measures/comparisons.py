"""Paired tests between methods: which differences are significant.

Two methods see the same images, so their difference is known far better than either mRI: intervals
of mRI that overlap prove nothing. Ten methods make 45 pairs, of which two would be significant by
chance alone, hence Holm's correction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from engine.measures import bootstrap, metrics
from engine.measures.metrics import Grid, Key
from engine.measures.predictions import SetPredictions
from engine.measures.rows import Arm, Comparison

SIGNIFICANT = 0.05
FIRST, MOST = 1 << 14, 1 << 20  # draws of a p, doubled while a corrected p is `undecided`
BATCH = 1 << 16  # draws that are in memory at a time


@dataclass(frozen=True)
class Family:
    """Tests that are corrected together: p, Holm's corrected p, and Monte-Carlo standard errors of
    both (0 where p is exact), as arrays of the same shape."""

    p: np.ndarray
    error: np.ndarray
    corrected: np.ndarray
    corrected_error: np.ndarray

    @classmethod
    def of(cls, p: np.ndarray, error: np.ndarray) -> Family:
        """Correct them; the error of a corrected p is how far it moves when all p move."""
        corrected, off = holm(p), bootstrap.CERTAIN * error
        moved = [np.abs(holm(np.clip(p + sign * off, 0, 1)) - corrected) for sign in (-1, 1)]
        return cls(p, error, corrected, np.maximum(*moved) / bootstrap.CERTAIN)


def compare(
    grid: Grid,
    pairs: Sequence[tuple[Arm, Arm]],
    sets: Sequence[str],
    downstreams: Sequence[str] = (),
    *,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Each pair's difference in mRI, then on each of the sets that a model was trained elsewhere
    than on; the population: `bootstrap`. downstreams: as in `metrics.summarise`.

    mRI: paired bootstrap over source images and seeds, until no corrected p is `undecided` or there
    are `MOST` draws; p is that of the percentile interval. Sets: McNemar's exact test (McNemar
    1947) over sources, for fixed seeds: a source is a win for the method whose models, trained on
    the other sets, get more of its images right. McNemar's test takes no weights, so p of a sample
    is that of the percentile interval.

    Raises ValueError for a pair of different pre-trained models or settings, or an arm that lacks
    a column.
    """
    if not pairs:
        return ()
    arms = list(dict.fromkeys(arm for pair in pairs for arm in pair))
    downstreams = downstreams or sets
    ri = metrics.improvements(grid.accuracy, sets, downstreams)
    in_mri = metrics.weights_in_mri(sets, downstreams)
    in_means = metrics.weights_in_means(sets, downstreams)
    for arm in arms:
        if set(ri.get(arm, ())) != set(downstreams):
            raise ValueError(f"{arm} was not fine-tuned on every set: it has no mRI to compare")
    for arm, against in pairs:
        if arm.model != against.model:
            raise ValueError(f"{arm} and {against} start from different pre-trained models")
        if arm.setting != against.setting:
            raise ValueError(f"{arm} and {against} have different settings")
    left, right = ([arms.index(pair[side]) for pair in pairs] for side in (0, 1))

    def mri(start: int, stop: int) -> np.ndarray:
        draws = metrics.sum_draws(grid, arms, in_mri, start, stop, seed)
        return draws[:, left] - draws[:, right]

    def changes(start: int, stop: int) -> np.ndarray:
        draws = metrics.change_draws(grid, arms, in_means, start, stop, seed)
        return draws[:, :, left] - draws[:, :, right]

    sampled = [grid.predictions[name].sampled for name in in_means]
    hits = [_right(grid, name, arms, list(of_set)) for name, of_set in in_means.items()]
    wins = [
        [
            _wins(grid.predictions[name], hit[a] - hit[b])
            for name, hit in zip(in_means, hits, strict=True)
        ]
        for a, b in zip(left, right, strict=True)
    ]
    exact = np.array([[sign_test(*counts) for counts in row] for row in wins])
    overall = _family(mri, np.full(len(pairs), np.nan))
    on_sets = _family(
        lambda start, stop: changes(start, stop)[:, sampled].swapaxes(1, 2),
        np.where(sampled, np.nan, exact),
    )
    draws = metrics.settle(mri)
    draws_of_sets = changes(0, len(draws))
    ood = _mean_accuracies(grid, downstreams)
    rows, rows_of_sets = [], []
    for k, (arm, against) in enumerate(pairs):
        value = fmean(ri[arm].values()) - fmean(ri[against].values())
        rows.append(_row(arm, against, "", value, draws[:, k], None, overall, k))
        for j, name in enumerate(in_means):
            value = ood[arm, name] - ood[against, name]
            samples = draws_of_sets[:, j, k]
            rows_of_sets.append(
                _row(arm, against, name, value, samples, wins[k][j], on_sets, (k, j))
            )
    return (*rows, *rows_of_sets)


def undecided(corrected: Any, error: Any) -> Any:
    """Whether Monte-Carlo error may have put a corrected p on the wrong side of `SIGNIFICANT`; of
    arrays, an array."""
    return np.abs(corrected - SIGNIFICANT) < bootstrap.CERTAIN * error


def all_pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Every two arms of a setting that start from the same pre-trained model."""
    pairs = itertools.combinations(arms, 2)
    return [(a, b) for a, b in pairs if (a.model, a.setting) == (b.model, b.setting)]


def against_method(arms: Sequence[Arm], method: str) -> list[tuple[Arm, Arm]]:
    """Every arm against each arm of a method; ValueError where there is none."""
    if method not in (known := dict.fromkeys(arm.method for arm in arms)):
        raise ValueError(
            f"there is no method {method!r} to compare with; there are {', '.join(known)}"
        )
    pairs = [(b, a) if a.method == method else (a, b) for a, b in all_pairs(arms)]
    return [(a, b) for a, b in pairs if b.method == method]


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p of a split of discordant pairs if both sides are equally likely (McNemar's
    test; as SciPy's `binomtest`, and fast for millions of pairs)."""
    if better == worse:
        return 1.0
    n, k = better + worse, min(better, worse)
    log_p = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    below = np.arange(k, 0, -1)
    tail = math.exp(log_p) * (1 + np.cumprod(below / (n - below + 1)).sum())
    return min(1.0, 2 * float(tail))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values of any shape, corrected for multiple testing (Holm 1979): at a threshold of 0.05 the
    chance of any false finding is at most 5%, however the tests depend on each other."""
    values = np.asarray(p, np.float64).ravel()
    order = np.argsort(values)
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, raised)
    return corrected.reshape(np.shape(p))


def _mean_accuracies(grid: Grid, downstreams: Sequence[str]) -> dict[tuple[Arm, str], float]:
    """Mean accuracy of an arm's models on a set that they were not trained on."""
    by_arm: dict[tuple[Arm, str], list[float]] = {}
    for row in grid.accuracy:
        if row.downstream in downstreams and not row.on_downstream:
            by_arm.setdefault((row.arm, row.evaluated_on), []).append(row.accuracy)
    return {key: fmean(values) for key, values in by_arm.items()}


def _right(grid: Grid, name: str, arms: Sequence[Arm], trained_on: Sequence[str]) -> np.ndarray:
    """[arms, sources] weight of a set's images that an arm's models get right: summed over the sets
    `trained_on` and seeds."""
    predictions = grid.predictions[name]
    return np.array(
        [
            np.sum([predictions.sums((arm, i), grid.seeds).sum(axis=0) for i in trained_on], axis=0)
            for arm in arms
        ]
    )


def _wins(predictions: SetPredictions[Key], net: np.ndarray) -> tuple[int, int]:
    """Sources of which the first arm, and the second, gets more images right; `net` [sources]: the
    first's weight of correct images less the second's."""
    least = 1e-6 * predictions.total.min()  # equal weighted sums may differ by rounding
    return int((net > least).sum()), int((net < -least).sum())


def _family(draw: Callable[[int, int], np.ndarray], exact: np.ndarray) -> Family:
    """Tests with an `exact` p; where that is NaN, p is estimated from draws [B, ...] of the tests'
    statistics, in the same order."""
    p, error, by_draws = exact.copy(), np.zeros(exact.shape), np.isnan(exact)
    done, stop, counts = 0, FIRST if by_draws.any() else 0, np.zeros((2, by_draws.sum()), int)
    while done < stop:
        for start in range(done, stop, BATCH):
            samples = draw(start, min(start + BATCH, stop))
            counts += bootstrap.tails(samples.reshape(len(samples), -1))
        p[by_draws], error[by_draws] = bootstrap.p_value(counts, stop)
        family = Family.of(p, error)
        more = undecided(family.corrected, family.corrected_error).any()
        done, stop = stop, min(2 * stop, MOST) if more else stop
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
        against.method,
        against.variant,
        against.alpha,
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
