"""How often intervals and tests hold, in made-up campaigns whose truth is known.

    python -m bench.simulated_campaigns [--campaigns 500] [--draws 1000]

A campaign is as large as the demo's. Each answer is right where a normal number is positive: a sum
of the model's strength on the set and of effects of the source image, of its copy in the set, and
of model and image. So every true accuracy is a normal probability, and every agreement a bivariate
one.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy import stats

from engine.measures import bootstrap, comparisons, metrics, scores
from engine.measures.effective_robustness import GIVEN, Baseline, above_trend, trends
from engine.measures.evaluated import Answers
from engine.measures.metrics import ROBUSTNESS, Grid, Means
from engine.measures.paired import SourceScores
from engine.measures.predictions import ImagePredictions
from engine.measures.rows import PLAIN, PRE, Arm, Evaluation, ModelOnSet
from engine.measures.tables import rows

SETS = tuple(f"set {k}" for k in range(8))
UPSTREAM = "up"
SOURCES = 160
SPREAD = {"source": 1.0, "copy": 0.6, "model": 0.8}  # of the effects on an answer
GAIN = {"a": 0.0, "b": 0.3, "same as b": 0.3, "c": 0.4}  # of the methods, in strength
# Accuracy upstream and on each set of the models that trend lines are fitted over.
KNOWN = pandas.DataFrame({UPSTREAM: [40.0, 60.0, 80.0], **{k: [20.0, 42, 63] for k in SETS}})
BASELINE = Baseline(KNOWN, GIVEN)


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
    """Agreement with the pretrained model, in percent: of two wrong answers, half are the same."""
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
        "negative_flips": before - both,
        "positive_flips": after - both,
        "agreement": both + wrong / 2,
    }


def campaign(number: int, draws: int) -> Grid:
    """What evaluation would have stored of a campaign."""
    rng = np.random.default_rng(number)
    source = SPREAD["source"] * rng.normal(size=SOURCES)
    arms = [Arm("m", PRE, "", None), *(Arm("m", method, "original", None) for method in GAIN)]
    counts = bootstrap.counts([f"{number} {k}" for k in range(SOURCES)], draws)
    names = scores.names(scores.PER_IMAGE, scores.BEFORE_AFTER)
    evaluations, numbers, samples, answers = [], [], [], {}
    for name in (*SETS, UPSTREAM):
        copy = SPREAD["copy"] * rng.normal(size=SOURCES)
        sums, before = [], None
        for arm in arms:
            for downstream in [""] if arm.method == PRE else SETS:
                noise = SPREAD["model"] * rng.normal(size=SOURCES)
                right = strength(arm.method, downstream, name) + source + copy + noise > 0
                top1 = np.where(right, 0, rng.integers(1, 3, SOURCES))
                images = ImagePredictions(top1, 0 * top1, top1, top1, np.ones(SOURCES))
                measured = scores.of_images(images, before)
                before = before or images
                sums.append(np.column_stack([*measured.values()]))
                means = 100 * sums[-1].mean(axis=0)
                numbers.append(
                    {"images": SOURCES, "sources": SOURCES, **dict(zip(names, means, strict=True))}
                )
                evaluations.append(Evaluation(*arm, downstream, name, Path()))
        joined = np.concatenate(sums, axis=1)
        drawn = bootstrap.means(counts, np.ones(SOURCES), joined)
        samples.append(100 * drawn.reshape(draws, -1, len(names)))
        places = [k for k, row in enumerate(evaluations) if row.evaluated_on == name]
        right = 100 * np.stack([of[:, names.index("accuracy")] for of in sums], axis=1)
        of_set = SourceScores(np.arange(SOURCES), np.ones(SOURCES), right)
        answers[name] = Answers(of_set, places)
    columns = np.concatenate(samples, axis=1)
    of_measures = {name: np.asfortranarray(columns[:, :, k]) for k, name in enumerate(names)}
    grid = metrics.grid_of(evaluations, numbers, of_measures, SETS, UPSTREAM, SETS, answers)
    return above_trend(grid, trends(grid, BASELINE))


def true(means: Means, measure: str = "accuracy") -> np.ndarray:
    """The true values of weighted means of accuracies or agreements."""
    cells = means.grid.cells
    keys = [
        ModelOnSet(
            row.model, row.method, row.variant, None, PLAIN, row.downstream, row.evaluated_on
        )
        for row in rows(cells)
    ]
    if measure == "accuracy":
        values = [true_accuracy(key) for key in keys]
    else:
        values = [np.nan if key.method == PRE else true_shares(key)[measure] for key in keys]
    return np.array(values) @ means.weights


def covered(number: int, draws: int) -> dict[str, list[bool]]:
    """Of a campaign, by kind of interval, which hold the truth; of tests, which claim falsely."""
    grid = campaign(number, draws)
    cells = grid.cells
    each = grid.mean(cells, ["arm", "downstream", "evaluated_on"])
    trained = cells[(cells["method"] != PRE) & (cells["evaluated_on"] == UPSTREAM)]
    change = grid.mean(trained, ["arm", "downstream"], of="change")
    ri = grid.mean(grid.ri_cells, ["arm", "downstream"], of="change")
    numbers = {"accuracy": each, "RI": ri, "mRI": grid.mri, "change": change}
    held: dict[str, list[bool]] = {}
    for kind, means in numbers.items():
        table = means.table("x", clip=kind == "accuracy")
        held[kind] = _holds(table, true(means))
    for measure in scores.names(scores.BEFORE_AFTER):
        held[measure] = _holds(each.table("x", measure, clip=True), true(each, measure))
    accuracy = true(each)[None]
    truth = np.full(len(cells), np.nan)
    for trend in trends(grid, BASELINE).values():
        truth[trend.cells] = trend.residuals(accuracy)[0]
    held[ROBUSTNESS] = _holds(each.table("x", ROBUSTNESS), truth)
    arms = [k for k, arm in enumerate(grid.arms) if arm.method != PRE]
    tests = comparisons.compare(grid, arms)
    on_sets = grid.mean(grid.ri_cells, ["arm", "evaluated_on"])
    values = dict(zip(grid.mri.keys["arm"], true(grid.mri), strict=True))
    keys = zip(on_sets.keys["arm"], on_sets.keys["evaluated_on"], strict=True)
    of_sets = dict(zip(keys, true(on_sets), strict=True))
    claims: dict[str, bool] = {}
    for row in rows(tests):
        name = row.evaluated_on
        kind = "difference on a set" if name else "difference in mRI"
        left, right = (
            of_sets[arm, name] if name else values[arm] for arm in (row.arm, row.against)
        )
        value = left - right
        holds = row.difference_low <= value <= row.difference_high
        held.setdefault(kind, []).append(holds)
        if {grid.arms[row.arm].method, grid.arms[row.against].method} == {"b", "same as b"}:
            held.setdefault(f"equal, p < 0.05: {kind}", []).append(row.p < 0.05)
            claims[kind] = claims.get(kind, False) or row.adjusted_p < 0.05
    return held | {f"equal, adjusted p < 0.05: {kind}": [claim] for kind, claim in claims.items()}


def _holds(table: pandas.DataFrame, truth: np.ndarray) -> list[bool]:
    known = table.assign(truth=truth).dropna()
    return known["truth"].between(known["x_low"], known["x_high"]).tolist()


def calibration(repeats: int, images: int = SOURCES) -> list[tuple[float, float, float]]:
    """Calibration error in points of models of several overconfidences: true, then the mean of what
    is measured in `repeats` samples, with bins' chance distances and debiased."""
    rows = []
    for over in (0.0, 0.05, 0.1, 0.2):
        rng = np.random.default_rng(0)

        def measured(count: int, over: float = over, rng=rng) -> tuple[float, float]:
            confidence = rng.beta(2.2, 1.2, count)
            top1 = (rng.random(count) > np.clip(confidence - over, 0, 1)).astype(int)
            p, label = confidence.astype(np.float32), np.zeros_like(top1)
            images = ImagePredictions(top1, label, p, p, np.ones(count))
            bins = np.clip(np.ceil(confidence * scores.BINS).astype(int) - 1, 0, None)
            plain = np.abs(np.bincount(bins, confidence - (top1 == 0))).sum() / count
            return 100 * float(plain), scores.calibration_error(images, np.arange(count))

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
    parser = argparse.ArgumentParser(description=__doc__)
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
