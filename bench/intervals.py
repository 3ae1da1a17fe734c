"""How often intervals and tests hold, in made-up campaigns whose truth is known.

    python -m bench.intervals [--campaigns 500] [--draws 1000]

A campaign is as large as the demo's. Each answer is right where a normal number is positive: a sum
of the model's strength on the set and of effects of the source image, of its copy in the set, and
of model and image. So every true accuracy is a normal probability, and every agreement a bivariate
one. It times nothing, so it is no case of `python -m bench`.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from engine.measures import behaviour, bootstrap, comparisons, intervals, metrics
from engine.measures.effective_robustness import GIVEN, Trend, above_trend
from engine.measures.metrics import Grid, Model, Weights
from engine.measures.predictions import ImagePredictions
from engine.measures.rows import (
    PRE,
    Agreement,
    Arm,
    Behaviour,
    Evaluation,
    ModelOnSet,
    SeedAccuracy,
)

SETS = tuple(f"set {k}" for k in range(8))
UPSTREAM = "up"
SOURCES = 160
SPREAD = {"source": 1.0, "copy": 0.6, "model": 0.8}  # of the effects on an answer
GAIN = {"a": 0.0, "b": 0.3, "same as b": 0.3, "c": 0.4}  # of the methods, in strength
GIVEN_MODELS = np.array([[40.0, 60.0, 80.0], [20.0, 42.0, 63.0]])  # upstream, shifted accuracy


@functools.cache
def strength(method: str, downstream: str, name: str) -> float:
    """What a model adds to every answer on a set: the same in all campaigns."""
    rng = np.random.default_rng([ord(letter) for letter in f"{downstream} on {name}"])
    before = 1.5 if name == UPSTREAM else np.linspace(-1.5, 1.5, len(SETS))[SETS.index(name)]
    if method == PRE:
        return float(before)
    return float(before + GAIN[method] + 0.2 * rng.normal() + 1.0 * (downstream == name))


@functools.cache
def true_accuracy(cell: ModelOnSet) -> float:
    """In percent."""
    scale = np.sqrt(sum(spread**2 for spread in SPREAD.values()))
    value = strength(cell.method, cell.downstream, cell.evaluated_on)
    return 100 * float(stats.norm.cdf(value / scale))


@functools.cache
def true_shares(cell: ModelOnSet) -> dict[str, float]:
    """Agreement with the pre-trained model, in percent: of two wrong answers, half are the same."""
    before = true_accuracy(ModelOnSet(*cell.arm.before, "", cell.evaluated_on))
    after = true_accuracy(cell)
    shared = SPREAD["source"] ** 2 + SPREAD["copy"] ** 2
    correlation = shared / (shared + SPREAD["model"] ** 2)
    ends = stats.norm.ppf([before / 100, after / 100])
    covariance: Any = np.array([[1, correlation], [correlation, 1]])
    both = 100 * float(stats.multivariate_normal.cdf(ends, cov=covariance))
    wrong = 100 - before - after + both
    return {
        "both_right": both,
        "lost": before - both,
        "gained": after - both,
        "same_top1": both + wrong / 2,
    }


def campaign(number: int, draws: int) -> Grid:
    """What evaluation would have stored of a campaign."""
    rng = np.random.default_rng(number)
    source = SPREAD["source"] * rng.normal(size=SOURCES)
    arms = [Arm("m", PRE, "", None), *(Arm("m", method, "canonical", None) for method in GAIN)]
    counts = bootstrap.counts([f"{number} {k}" for k in range(SOURCES)], draws)
    models = []
    for name in (*SETS, UPSTREAM):
        copy = SPREAD["copy"] * rng.normal(size=SOURCES)
        sums, rows = [], []
        before = None
        for arm in arms:
            for downstream in [""] if arm.method == PRE else SETS:
                cell = ModelOnSet(*arm, downstream, name)
                noise = SPREAD["model"] * rng.normal(size=SOURCES)
                right = strength(arm.method, downstream, name) + source + copy + noise > 0
                top1 = np.where(right, 0, rng.integers(1, 3, SOURCES))
                images = ImagePredictions(top1, np.zeros_like(top1), top1, np.ones(SOURCES), 0.0)
                before = before or images
                agreed = behaviour.agreement(before, images)
                sums.append(np.column_stack([images.hit, agreed]))
                accuracy, same, lost, gained = (100 * sums[-1].mean(axis=0)).tolist()
                numbers = Agreement(same, accuracy - gained, lost, gained)
                if arm.method == PRE:
                    numbers = Agreement(None, None, None, None)
                    sums[-1] = np.column_stack([images.hit, np.full((SOURCES, 3), np.nan)])
                rows.append(
                    (
                        Evaluation(*cell.key, Path()),
                        SeedAccuracy(*cell.key, 0, SOURCES, accuracy),
                        Behaviour(*cell.key, *numbers, 0.0),
                    )
                )
        joined = np.concatenate(sums, axis=1)
        samples = bootstrap.means(counts, np.ones(SOURCES), joined).reshape(draws, -1, 4)
        for k, (evaluation, accuracy, shares) in enumerate(rows):
            drawn = samples[:, k, 0], samples[:, k, 1:]
            models.append(Model(evaluation, accuracy, shares, *drawn))
    return metrics.grid_of(models, dict.fromkeys(arms, True))


def total(weights: Weights) -> float:
    """A weighted sum of true accuracies, in percent or points."""
    return sum(weight * true_accuracy(cell) for cell, weight in weights.items())


def truths(grid: Grid, trends: Mapping[str, Trend]) -> dict[tuple[str, ModelOnSet], float]:
    """Of every interval of a campaign the true number, by quantity and cell."""
    cells = [row.cell for row in grid.accuracy]
    truth = {("accuracy", cell): true_accuracy(cell) for cell in cells}
    arms = list(dict.fromkeys(cell.arm for cell in cells if cell.method != PRE))
    for arm in arms:
        truth |= {("RI", ModelOnSet(*arm, i, "")): total(metrics.in_ri(arm, i, SETS)) for i in SETS}
        truth["mRI", ModelOnSet(*arm, "", "")] = total(metrics.in_mri(arm, SETS, SETS))
        for i in SETS:
            cell = ModelOnSet(*arm, i, UPSTREAM)
            before = ModelOnSet(*arm.before, "", UPSTREAM)
            truth[intervals.CHANGE, cell] = true_accuracy(cell) - true_accuracy(before)
    for cell in cells:
        if cell.method != PRE:
            truth |= {(name, cell): share for name, share in true_shares(cell).items()}
    for trend in trends.values():
        residuals = trend.residuals(lambda cell: np.array([true_accuracy(cell)]), UPSTREAM)
        truth |= {(intervals.ROBUSTNESS, cell): float(x[0]) for cell, x in residuals.items()}
    return truth


def covered(number: int, draws: int) -> dict[str, list[bool]]:
    """Of a campaign, by kind of interval, which hold the truth; of tests, which claim falsely."""
    grid = campaign(number, draws)
    cells = [row.cell for row in grid.accuracy]
    trends = {}
    for name in SETS:
        on_set = tuple(cell for cell in cells if cell.evaluated_on == name != cell.downstream)
        trends[name] = Trend(on_set, (), GIVEN_MODELS, GIVEN)
    summary = metrics.summarise(grid, SETS)
    behaviours = above_trend(grid.behaviour, grid.accuracy, trends, UPSTREAM)
    truth = truths(grid, trends)
    held: dict[str, list[bool]] = {}
    for row in intervals.intervals(grid, summary, behaviours, SETS, UPSTREAM, trends=trends):
        if (row.quantity, row.cell) in truth:
            value = truth[row.quantity, row.cell]
            held.setdefault(row.quantity, []).append(row.low <= value <= row.high)
    arms = [row.arm for row in summary.mri]
    tests = comparisons.compare(grid, comparisons.all_pairs(arms), SETS)
    claims: dict[str, bool] = {}
    for row in tests:
        kind = "difference on a set" if row.evaluated_on else "difference in mRI"
        left, right = (
            metrics.in_mean(arm, row.evaluated_on, SETS)
            if row.evaluated_on
            else metrics.in_mri(arm, SETS, SETS)
            for arm in (row.arm, row.against)
        )
        value = total(left) - total(right)
        held.setdefault(kind, []).append(row.low <= value <= row.high)
        if {row.method, row.against_method} == {"b", "same as b"}:
            held.setdefault(f"equal, p < 0.05: {kind}", []).append(row.p < 0.05)
            claims[kind] = claims.get(kind, False) or row.p_corrected < 0.05
    return held | {f"equal, corrected p < 0.05: {kind}": [claim] for kind, claim in claims.items()}


def calibration(repeats: int, images: int = SOURCES) -> list[tuple[float, float, float]]:
    """Calibration error in points of models of several overconfidences: true, then the mean of what
    is measured in `repeats` samples, with bins' chance distances and debiased."""
    rows = []
    for over in (0.0, 0.05, 0.1, 0.2):
        rng = np.random.default_rng(0)

        def sample(count: int, over: float = over, rng=rng) -> tuple[np.ndarray, np.ndarray]:
            confidence = rng.beta(2.2, 1.2, count)
            return confidence, (rng.random(count) > np.clip(confidence - over, 0, 1)).astype(int)

        def measured(count: int, sample=sample) -> tuple[float, float]:
            confidence, top1 = sample(count)
            images = ImagePredictions(
                top1, np.zeros_like(top1), confidence.astype(np.float32), np.ones(count), 0.0
            )
            everyone = np.arange(count)
            bins = np.clip(np.ceil(confidence * behaviour.BINS).astype(int) - 1, 0, None)
            plain = np.abs(np.bincount(bins, confidence - (top1 == 0))).sum() / count
            return 100 * float(plain), behaviour.calibration_error(images, everyone)

        truth, _ = measured(1_000_000)
        rows.append((truth, *np.mean([measured(images) for _ in range(repeats)], axis=0)))
    return rows


def table(campaigns: int, draws: int) -> dict[str, tuple[float, int]]:
    """By kind, the share that held and how many there were."""
    held: dict[str, list[bool]] = {}
    for number in range(campaigns):
        for kind, values in covered(number, draws).items():
            held.setdefault(kind, []).extend(values)
    return {kind: (float(np.mean(values)), len(values)) for kind, values in held.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.intervals", description=__doc__)
    parser.add_argument("--campaigns", type=int, default=500)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args(arguments)
    print(f"{options.campaigns} campaigns, {options.draws} draws; nominal 95%, of claims 5%")
    for kind, (share, count) in table(options.campaigns, options.draws).items():
        print(f"{kind:55} {share:6.1%} of {count:,}")
    for truth, plain, debiased in calibration(options.campaigns):
        print(f"calibration error {truth:5.2f}: {plain:5.2f} as it is, {debiased:5.2f} debiased")
    return 0


if __name__ == "__main__":
    sys.exit(main())
