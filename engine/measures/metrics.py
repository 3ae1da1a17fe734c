"""From stored predictions to accuracy, RI and mRI: the arithmetic of the benchmark.

Evaluation keeps one row an image for every model, so every number of a report can be computed,
checked and re-sampled later without a GPU. This module is that step, and needs no torch.

ImageNet-RIB's definitions, with n downstream sets and A_i^(j) the accuracy in percent on set j of
the model fine-tuned on set i: RI_i = 1/(n-1) sum_{j != i} (A_i^(j) - A_pre^(j)), and mRI is the
mean of RI_i over i. Each set is left out once, so the mean OOD accuracy after fine-tuning,
mean_i 1/(n-1) sum_{j != i} A_i^(j), is mRI + mean_j A_pre^(j). Of cells that were trained with
several seeds, A_i^(j) is the mean.

A campaign may fine-tune on sets (`downstreams`) other than those that it measures RI on (`sets`),
such as the upstream set. RI_i is then the mean over all of `sets` where i is not among them, and
mRI the mean over `downstreams`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from engine.measures import behaviour, bootstrap, parallel, rows
from engine.measures.predictions import ImagePredictions, SetPredictions
from engine.measures.rows import (
    PRE,
    Accuracy,
    Agreement,
    Arm,
    Behaviour,
    Evaluation,
    ModelOnSet,
    Mri,
    SeedAccuracy,
)
from engine.measures.source_sums import SourceSums

RESAMPLES = 1000  # at first
MOST = 1 << 16  # draws that are in memory at a time
DIGIT = 0.1  # points: what tables print, and so what ends of intervals are drawn to
NOT_KNOWN = Agreement(None, None, None, None)
Key = tuple[Arm, str]  # arm and downstream set
Weights = Mapping[str, Mapping[str, float]]  # by the set evaluated on, then by downstream set


@dataclass(frozen=True)
class Summary:
    """Accuracies and mRI; `by_seed` is empty unless cells were trained with several seeds."""

    accuracy: tuple[Accuracy, ...]
    mri: tuple[Mri, ...]
    by_seed: tuple[SeedAccuracy, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A grid's predictions, read and checked once, and reduced to what all statistics start from.

    `predictions`: by set, those of models trained elsewhere. `downstream_predictions`: those of
    models trained on the set; RI never uses them, and they may be of a hold-out only.
    `source_sums`: by cell and seed, in the rows of the cell's set.
    """

    accuracy: tuple[Accuracy, ...]
    behaviour: tuple[Behaviour, ...]
    by_seed: tuple[SeedAccuracy, ...]
    seeds: tuple[int, ...]
    predictions: Mapping[str, SetPredictions[Key]]
    downstream_predictions: Mapping[str, SetPredictions[Key]]
    source_sums: Mapping[ModelOnSet, Mapping[int, SourceSums]]


def gather(evaluations: Sequence[Evaluation]) -> Grid:
    """Read every evaluation once; rows come in the order of the evaluations.

    Raises ValueError for duplicates, cells that lack a seed that others have, arms that are the
    headline on some sets only, unreadable or NaN predictions, and evaluations of one set that saw
    different images.
    """
    seeds = _check_cells(evaluations)
    headline = _headlines(evaluations)
    by_set: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_set.setdefault(evaluation.evaluated_on, []).append(evaluation)
    predictions: dict[str, SetPredictions[Key]] = {}
    downstream_predictions: dict[str, SetPredictions[Key]] = {}
    source_sums: dict[ModelOnSet, dict[int, SourceSums]] = {}
    numbers: dict[ModelOnSet, list[tuple[SeedAccuracy, Behaviour]]] = {}
    for name, results in zip(by_set, parallel.each(_read, by_set.values()), strict=True):
        if results.elsewhere.first is not None:
            predictions[name] = results.elsewhere
        if results.downstream.first is not None:
            downstream_predictions[name] = results.downstream
        for evaluation, sums, accuracy, changed in results.rows:
            source_sums.setdefault(evaluation.cell, {})[evaluation.seed] = sums
            numbers.setdefault(evaluation.cell, []).append((accuracy, changed))
    accuracies, behaviours, by_seed = [], [], []
    for cell in dict.fromkeys(evaluation.cell for evaluation in evaluations):
        of_seeds = numbers[cell]
        of_cell = [accuracy for accuracy, _ in of_seeds]
        mean = fmean(row.accuracy for row in of_cell)
        accuracies.append(Accuracy(*cell.key, of_cell[0].n, mean, headline[cell.arm]))
        behaviours.append(_mean([changed for _, changed in of_seeds]))
        by_seed += of_cell
    return Grid(
        tuple(accuracies),
        tuple(behaviours),
        tuple(by_seed),
        seeds,
        predictions,
        downstream_predictions,
        source_sums,
    )


def summarise(
    evaluations: Sequence[Evaluation] | Grid,
    sets: Sequence[str],
    downstreams: Sequence[str] = (),
    *,
    seed: int = 0,
) -> Summary:
    """Accuracies, and mRI on `sets` with intervals (the population meant: `bootstrap`), from as
    many draws as `settle` makes.

    downstreams: the sets fine-tuned on; empty: `sets`. Sets evaluated on but not among `sets` (the
    upstream set) are reported, never part of RI. Raises ValueError for an incomplete grid, and all
    that `gather` refuses.
    """
    if len(sets) < 2 or len(set(sets)) != len(sets):
        raise ValueError(f"RI needs two or more distinct sets, got {list(sets)}")
    downstreams = downstreams or sets
    grid = evaluations if isinstance(evaluations, Grid) else gather(evaluations)
    ri = improvements(grid.accuracy, sets, downstreams)
    missing = [
        f"{arm} was not fine-tuned on {', '.join(i for i in downstreams if i not in columns)}"
        for arm, columns in ri.items()
        if len(columns) < len(downstreams)
    ]
    if missing:
        raise ValueError(f"the grid is incomplete: {'; '.join(missing)}. Finish the campaign")
    mri = []
    if arms := list(ri):
        headline = {row.arm: row.headline for row in grid.accuracy}
        weights = weights_in_mri(sets, downstreams)
        draws = settle(lambda start, stop: sum_draws(grid, arms, weights, start, stop, seed))
        for arm, samples in zip(arms, draws.T, strict=True):
            value = math.fsum(ri[arm].values()) / len(downstreams)
            mri.append(Mri(*arm, value, *bootstrap.ends(samples), headline[arm]))
    return Summary(grid.accuracy, tuple(mri), grid.by_seed if len(grid.seeds) > 1 else ())


def improvements(
    accuracy: Iterable[Accuracy], sets: Sequence[str], downstreams: Sequence[str] = ()
) -> dict[Arm, dict[str, float]]:
    """RI in points per arm and downstream set (empty: `sets`); columns that were not run are left
    out.

    Raises ValueError, naming the cell, where a model in use was not evaluated on one of `sets`.
    """
    grid: dict[Arm, dict[str, dict[str, float]]] = {}
    for row in accuracy:
        grid.setdefault(row.arm, {}).setdefault(row.downstream, {})[row.evaluated_on] = row.accuracy
    before = {arm.model: columns[""] for arm, columns in grid.items() if arm.method == PRE}
    ri: dict[Arm, dict[str, float]] = {}
    for arm, columns in grid.items():
        trained_on = [name for name in downstreams or sets if name in columns]
        if arm.method == PRE or not trained_on:
            continue
        _check_evaluated(f"{arm.model} {PRE}", before.get(arm.model, {}), sets)
        for downstream in trained_on:
            _check_evaluated(f"{arm} fine-tuned on {downstream}", columns[downstream], sets)
        ri[arm] = {
            name: robustness_improvement(name, columns[name], before[arm.model], sets)
            for name in trained_on
        }
    return ri


def robustness_improvement(
    downstream: str, after: Mapping[str, float], before: Mapping[str, float], sets: Sequence[str]
) -> float:
    """RI of one fine-tuned model: its mean change in accuracy over the other sets (points)."""
    changes = [after[name] - before[name] for name in sets if name != downstream]
    return math.fsum(changes) / len(changes)


def settle(
    draw: Callable[[int, int], np.ndarray],
    statistics: Callable[[np.ndarray], np.ndarray] = lambda draws: draws,
) -> np.ndarray:
    """Draws [B, ...] of `draw(start, stop)`: B is doubled until Monte-Carlo error leaves a `DIGIT`
    of the intervals of `statistics(draws)` [B, K], or there are `MOST`."""
    draws = draw(0, RESAMPLES)
    while len(draws) < MOST:
        errors = [bootstrap.ends(samples).error for samples in statistics(draws).T]
        if max(errors, default=0.0) <= DIGIT / 2:
            break
        draws = np.concatenate([draws, draw(len(draws), min(2 * len(draws), MOST))])
    return draws


def settled_draws(
    by_set: Mapping[str, SetPredictions[Any]], columns: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Draws [B, K], as many as `settle` makes, of means in percent, set after set, of columns as
    `bootstrap.means` takes them."""

    def draw(start: int, stop: int) -> np.ndarray:
        draws = bootstrap.means(by_set, columns, resamples=stop, seed=0, start=start)
        return 100 * np.concatenate(list(draws.values()), axis=1)

    return settle(draw)


def weights_in_mri(sets: Sequence[str], downstreams: Sequence[str]) -> Weights:
    """What a change in accuracy on each of `sets` counts in mRI, of each model trained elsewhere.
    Sets on which there is no such model are left out."""
    others = {i: len(sets) - (i in sets) for i in downstreams}
    return {
        name: {i: 1 / (len(downstreams) * n) for i, n in others.items() if i != name}
        for name in sets
        if any(i != name for i in downstreams)
    }


def weights_in_means(sets: Sequence[str], downstreams: Sequence[str]) -> Weights:
    """The same in the mean change on a set, over the models trained elsewhere."""
    return {
        name: dict.fromkeys(weights, 1 / len(weights))
        for name, weights in weights_in_mri(sets, downstreams).items()
    }


def change_draws(
    grid: Grid, arms: Sequence[Arm], weights: Weights, start: int, stop: int, seed: int
) -> np.ndarray:
    """Joint bootstrap draws [stop - start, sets of `weights`, arms] of the weighted sums of changes
    on each set, in points. They are linear in the set's sums per source, hence one matrix product a
    set."""
    columns = {name: _changes(grid, name, arms, of_set) for name, of_set in weights.items()}
    draws = bootstrap.means(grid.predictions, columns, resamples=stop, seed=seed, start=start)
    return np.stack(list(draws.values()), axis=1)


def sum_draws(
    grid: Grid, arms: Sequence[Arm], weights: Weights, start: int, stop: int, seed: int
) -> np.ndarray:
    """Draws [stop - start, arms] of `change_draws`, summed over the sets: mRI by the weights that
    it has. Sets that hold equally many images of the same sources share a matrix product."""
    by_set = grid.predictions
    columns: dict[str, np.ndarray] = {}
    for name, of_set in weights.items():
        alike = (known for known in columns if _same_sources(by_set[name], by_set[known]))
        shared = next(alike, name)
        columns[shared] = columns.get(shared, 0) + _changes(grid, name, arms, of_set)
    draws = bootstrap.means(by_set, columns, resamples=stop, seed=seed, start=start)
    return np.sum(list(draws.values()), axis=0)


def _same_sources(a: SetPredictions[Key], b: SetPredictions[Key]) -> bool:
    """Whether two sets hold equally many images of the same sources."""
    return np.array_equal(a.sources, b.sources) and np.array_equal(a.total, b.total)


def _changes(
    grid: Grid, name: str, arms: Sequence[Arm], weights: Mapping[str, float]
) -> np.ndarray:
    """[seeds, sources, arms] change on a set: the sum over the models trained on the sets of
    `weights`, in points. Models of equal weight are added up before it multiplies them."""
    predictions, seeds = grid.predictions[name], grid.seeds
    changes: Any = 0
    for weight in dict.fromkeys(weights.values()):
        trained_on = [downstream for downstream, w in weights.items() if w == weight]
        of_arms = [
            np.sum([predictions.sums((arm, i), seeds) for i in trained_on], axis=0)
            - len(trained_on) * predictions.sums((arm.before, ""), seeds)
            for arm in arms
        ]
        changes = changes + np.stack(of_arms, axis=-1) * (100 * weight)
    return changes


def write_csv(folder: Path, summary: Summary) -> tuple[Path, ...]:
    """Write `accuracy.csv`, `mri.csv` and, where there are several seeds, `seeds.csv`."""
    paths = [
        rows.write(folder / "accuracy.csv", Accuracy, summary.accuracy),
        rows.write(folder / "mri.csv", Mri, summary.mri),
    ]
    if summary.by_seed:
        paths.append(rows.write(folder / "seeds.csv", SeedAccuracy, summary.by_seed))
    return tuple(paths)


class _SetResults(NamedTuple):
    """A set's evaluations: predictions of models trained elsewhere and on the set, and of each
    evaluation its sums and rows."""

    elsewhere: SetPredictions[Key]
    downstream: SetPredictions[Key]
    rows: list[tuple[Evaluation, SourceSums, SeedAccuracy, Behaviour]]


def _read(evaluations: Sequence[Evaluation]) -> _SetResults:
    """Read all evaluations of one set."""
    results = _SetResults(SetPredictions(), SetPredictions(), [])
    pre_trained: dict[str, ImagePredictions] = {}
    for row in sorted(evaluations, key=lambda row: row.method != PRE):
        of_set = results.downstream if row.on_downstream else results.elsewhere
        after = of_set.add((row.arm, row.downstream), row.path, row.seed, row.model)
        before = pre_trained.get(row.model)
        if row.method == PRE:
            pre_trained[row.model] = after
        elif row.on_downstream and before and not of_set.same_images(results.elsewhere):
            before = None
        agreement = behaviour.agreement(before, after) if before else NOT_KNOWN
        error = behaviour.calibration_error(after)
        results.rows.append(
            (
                row,
                SourceSums.of(of_set, before, after),
                SeedAccuracy(*row.key, row.seed, len(after.label), after.accuracy),
                Behaviour(*row.key, *agreement, error),
            )
        )
    return results


def _mean(of_seeds: Sequence[Behaviour]) -> Behaviour:
    """The mean over seeds."""
    columns = zip(*(row.agreement for row in of_seeds), strict=True)
    means = Agreement(*(None if None in column else fmean(column) for column in columns))
    error = fmean(row.calibration_error for row in of_seeds)
    return Behaviour(*of_seeds[0].key, *means, error)


def _check_cells(evaluations: Sequence[Evaluation]) -> tuple[int, ...]:
    """The seeds that every cell was trained with."""
    paths: dict[ModelOnSet, dict[int, Path]] = {}
    for row in evaluations:
        pre_trained = row.method == PRE
        if pre_trained != (row.downstream == ""):
            raise ValueError(
                f"{row.arm} on {row.evaluated_on}: an empty downstream is for the pre-trained "
                f"model (method '{PRE}'), and only for it"
            )
        if pre_trained and (row.arm != row.arm.before or row.seed):
            raise ValueError(f"{row}: the pre-trained model has no variant, alpha, setting or seed")
        by_seed = paths.setdefault(row.cell, {})
        if row.seed in by_seed:
            raise ValueError(f"{row.cell} is given twice: {by_seed[row.seed]} and {row.path}")
        by_seed[row.seed] = row.path
    trained = {cell: set(by_seed) for cell, by_seed in paths.items() if cell.method != PRE}
    seeds = set[int]().union(*trained.values())
    for cell, seeds_of_cell in trained.items():
        if lacking := sorted(seeds - seeds_of_cell):
            raise ValueError(
                f"{cell} lacks seed {', '.join(map(str, lacking))}, which others have: "
                "train it with the same seeds"
            )
    return tuple(sorted(seeds)) or (0,)


def _headlines(evaluations: Sequence[Evaluation]) -> dict[Arm, bool]:
    """By arm, whether tables show it."""
    headline: dict[Arm, bool] = {}
    for row in evaluations:
        if headline.setdefault(row.arm, row.headline) != row.headline:
            raise ValueError(
                f"{row.arm} is the headline of its method for some sets or seeds only: a table's "
                "row shows one alpha, so name the same one as headline for all of them"
            )
    return headline


def _check_evaluated(model: str, accuracy: Mapping[str, float], sets: Sequence[str]) -> None:
    if missing := [name for name in sets if name not in accuracy]:
        raise ValueError(
            f"{model} was not evaluated on {', '.join(missing)}: evaluate it there first"
        )
