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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import sparse

from engine.measures import behaviour, bootstrap, parallel, rows
from engine.measures.bootstrap import DRAWS
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

TOGETHER = 64  # evaluations whose draws are made at a time
Weights = Mapping[ModelOnSet, float]  # what each cell counts in a weighted sum


@dataclass(frozen=True)
class Summary:
    """Accuracies and mRI; `by_seed` is empty unless cells were trained with several seeds."""

    accuracy: tuple[Accuracy, ...]
    mri: tuple[Mri, ...]
    by_seed: tuple[SeedAccuracy, ...] = ()


@dataclass(frozen=True)
class Draws:
    """Joint bootstrap draws of every cell's numbers in percent, a column a cell (`place`).

    accuracy, same_top1, lost, gained: float32 [B, cells], over images and seeds; NaN where a cell
    has no agreement. over_images: accuracy with the seeds as they are. by_seed: float64 [S, cells],
    accuracy of each seed.
    """

    place: Mapping[ModelOnSet, int]
    accuracy: np.ndarray
    same_top1: np.ndarray
    lost: np.ndarray
    gained: np.ndarray
    over_images: np.ndarray
    by_seed: np.ndarray

    @property
    def both_right(self) -> np.ndarray:
        return self.accuracy - self.gained

    def matrix(self, sums: Sequence[Weights]) -> sparse.csc_array:
        """The weights [cells, K] of K weighted sums: `draws.accuracy @ matrix` are their draws."""
        rows = [self.place[cell] for weights in sums for cell in weights]
        columns = np.repeat(np.arange(len(sums)), [len(weights) for weights in sums])
        values = np.array([w for weights in sums for w in weights.values()], np.float64)
        shape = (len(self.place), len(sums))
        return sparse.csc_array((values, (np.array(rows, int), columns)), shape=shape)

    def of(self, sums: Sequence[Weights]) -> np.ndarray:
        """Draws [B, K] of K weighted sums of accuracies."""
        return self.accuracy @ self.matrix(sums)


@dataclass(frozen=True)
class Model:
    """An evaluation's numbers, and draws (float32 [B] or [B, 3], shares) of its accuracy and its
    agreement with the pre-trained model."""

    evaluation: Evaluation
    accuracy: SeedAccuracy
    behaviour: Behaviour
    right: np.ndarray
    agreed: np.ndarray


@dataclass(frozen=True)
class Grid:
    """A grid's predictions, read and checked once, and reduced to a row a cell and its draws."""

    accuracy: tuple[Accuracy, ...]
    behaviour: tuple[Behaviour, ...]
    by_seed: tuple[SeedAccuracy, ...]
    seeds: tuple[int, ...]
    draws: Draws

    def values(self, sums: Sequence[Weights]) -> np.ndarray:
        """K weighted sums [K] of accuracies."""
        known = {row.cell: row.accuracy for row in self.accuracy}
        return np.array([math.fsum(w * known[c] for c, w in of.items()) for of in sums])


def gather(evaluations: Sequence[Evaluation], draws: int = DRAWS, seed: int = 0) -> Grid:
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
    read = parallel.each(lambda rows: _read(rows, draws, seed), by_set.values())
    models = {model.evaluation: model for of_set in read for model in of_set}
    return grid_of([models[row] for row in evaluations], headline, seeds)


def grid_of(
    models: Sequence[Model], headline: Mapping[Arm, bool], seeds: Sequence[int] = (0,)
) -> Grid:
    """The grid of models on sets, each trained with all `seeds`; rows come in their order."""
    cells: dict[ModelOnSet, list[Model]] = {}
    for model in models:
        cells.setdefault(model.evaluation.cell, []).append(model)
    accuracies, behaviours = [], []
    for cell, of_seeds in cells.items():
        mean = fmean(model.accuracy.accuracy for model in of_seeds)
        n = of_seeds[0].accuracy.n
        accuracies.append(Accuracy(*cell.key, n, mean, headline[cell.arm]))
        behaviours.append(_mean([model.behaviour for model in of_seeds]))
    return Grid(
        tuple(accuracies),
        tuple(behaviours),
        tuple(model.accuracy for of_seeds in cells.values() for model in of_seeds),
        tuple(seeds),
        _draws(cells, len(seeds)),
    )


def summarise(
    evaluations: Sequence[Evaluation] | Grid,
    sets: Sequence[str],
    downstreams: Sequence[str] = (),
    *,
    draws: int = DRAWS,
) -> Summary:
    """Accuracies, and mRI on `sets` with intervals (the population meant: `bootstrap`).

    downstreams: the sets fine-tuned on; empty: `sets`. Sets evaluated on but not among `sets` (the
    upstream set) are reported, never part of RI. Raises ValueError for an incomplete grid, and all
    that `gather` refuses.
    """
    if len(sets) < 2 or len(set(sets)) != len(sets):
        raise ValueError(f"RI needs two or more distinct sets, got {list(sets)}")
    downstreams = downstreams or sets
    grid = evaluations if isinstance(evaluations, Grid) else gather(evaluations, draws)
    ri = improvements(grid.accuracy, sets, downstreams)
    missing = [
        f"{arm} was not fine-tuned on {', '.join(i for i in downstreams if i not in columns)}"
        for arm, columns in ri.items()
        if len(columns) < len(downstreams)
    ]
    if missing:
        raise ValueError(f"the grid is incomplete: {'; '.join(missing)}. Finish the campaign")
    headline = {row.arm: row.headline for row in grid.accuracy}
    sums = [in_mri(arm, sets, downstreams) for arm in ri]
    ends = bootstrap.interval(grid.draws.of(sums)).T
    mri = [
        Mri(*arm, math.fsum(columns.values()) / len(downstreams), low, high, headline[arm])
        for (arm, columns), (low, high) in zip(ri.items(), ends.tolist(), strict=True)
    ]
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


def in_ri(arm: Arm, downstream: str, sets: Sequence[str]) -> dict[ModelOnSet, float]:
    """What each cell counts in an arm's RI of a downstream set."""
    others = [name for name in sets if name != downstream]
    after = {ModelOnSet(*arm, downstream, name): 1 / len(others) for name in others}
    return after | {ModelOnSet(*arm.before, "", name): -1 / len(others) for name in others}


def in_mri(arm: Arm, sets: Sequence[str], downstreams: Sequence[str]) -> dict[ModelOnSet, float]:
    """What each cell counts in an arm's mRI."""
    weights: dict[ModelOnSet, float] = {}
    for downstream in downstreams:
        for cell, weight in in_ri(arm, downstream, sets).items():
            weights[cell] = weights.get(cell, 0.0) + weight / len(downstreams)
    return weights


def in_mean(arm: Arm, name: str, downstreams: Sequence[str]) -> dict[ModelOnSet, float]:
    """What each cell counts in the mean accuracy on a set, over an arm's models that were trained
    on other sets."""
    elsewhere = [downstream for downstream in downstreams if downstream != name]
    return {ModelOnSet(*arm, i, name): 1 / len(elsewhere) for i in elsewhere}


def weights_in_mri(sets: Sequence[str], downstreams: Sequence[str]) -> dict[str, dict[str, float]]:
    """By set, then by downstream set, what a change in accuracy counts in mRI. Sets on which no
    model trained elsewhere is measured are left out."""
    others = {i: len(sets) - (i in sets) for i in downstreams}
    return {
        name: {i: 1 / (len(downstreams) * n) for i, n in others.items() if i != name}
        for name in sets
        if any(i != name for i in downstreams)
    }


def write_csv(folder: Path, summary: Summary) -> tuple[Path, ...]:
    """Write `accuracy.csv`, `mri.csv` and, where there are several seeds, `seeds.csv`."""
    paths = [
        rows.write(folder / "accuracy.csv", Accuracy, summary.accuracy),
        rows.write(folder / "mri.csv", Mri, summary.mri),
    ]
    if summary.by_seed:
        paths.append(rows.write(folder / "seeds.csv", SeedAccuracy, summary.by_seed))
    return tuple(paths)


def _read(evaluations: Sequence[Evaluation], draws: int, seed: int) -> list[Model]:
    """All evaluations of one set. Models that were trained on the set may have seen a hold-out
    only, so they are read apart."""
    of_set, on_downstream = SetPredictions(), SetPredictions()
    before: dict[str, ImagePredictions] = {}
    models: list[Model] = []
    ordered = sorted(evaluations, key=lambda row: row.method != PRE)
    for bank, is_on in ((of_set, False), (on_downstream, True)):
        rows = [row for row in ordered if row.on_downstream == is_on]
        counts = np.empty(0)
        for start in range(0, len(rows), TOGETHER):
            numbers = [_numbers(r, bank, of_set, before) for r in rows[start : start + TOGETHER]]
            counts = counts if start else bootstrap.counts(bank.sources, draws, seed)
            sums = np.concatenate([of_model[-1] for of_model in numbers], axis=1)
            samples = bootstrap.means(counts, bank.total, sums).T.reshape(-1, 4, draws).copy()
            for (row, accuracy, shares, _), sample in zip(numbers, samples, strict=True):
                models.append(Model(row, accuracy, shares, sample[0], sample[1:].T))
    return models


def _numbers(
    row: Evaluation,
    bank: SetPredictions,
    of_set: SetPredictions,
    before: dict[str, ImagePredictions],
) -> tuple[Evaluation, SeedAccuracy, Behaviour, np.ndarray]:
    """An evaluation's rows, and its sums [sources, 4] of right answers and of agreement with the
    pre-trained model, which are NaN where that saw other images. Predictions of pre-trained models
    are added to `before`."""
    after = bank.add(row.path, row.model)
    sums = np.full((len(bank.sources), 4), np.nan, np.float32)
    sums[:, 0] = bank.by_source(after.hit)
    shares = Agreement(None, None, None, None)
    if row.method == PRE:
        before[row.model] = after
    elif row.model in before and (bank is of_set or bank.same_images(of_set)):
        agreed = behaviour.agreement(before[row.model], after)
        for k in range(3):
            sums[:, 1 + k] = bank.by_source(agreed[:, k])
        same, lost, gained = (100 * (after.weights @ agreed) / after.weights.sum()).tolist()
        shares = Agreement(same, after.accuracy - gained, lost, gained)
    error = behaviour.calibration_error(after, bank.codes)
    accuracy = SeedAccuracy(*row.key, row.seed, len(after.label), after.accuracy)
    return row, accuracy, Behaviour(*row.key, *shares, error), sums


def _draws(cells: Mapping[ModelOnSet, Sequence[Model]], seeds: int) -> Draws:
    draws = len(next(iter(cells.values()))[0].right)
    weights = bootstrap.seed_weights(draws, seeds)
    right = np.empty((draws, len(cells)), np.float32, order="F")  # a cell's draws side by side
    over_images = right if seeds == 1 else np.empty_like(right)
    agreed = np.empty((draws, len(cells), 3), np.float32, order="F")
    by_seed = np.empty((seeds, len(cells)))
    for k, of_seeds in enumerate(cells.values()):
        ordered = sorted(of_seeds, key=lambda model: model.evaluation.seed)
        by_seed[:, k] = [model.accuracy.accuracy for model in ordered]
        if len(ordered) == 1:  # the pre-trained model has no seeds
            right[:, k] = over_images[:, k] = 100 * ordered[0].right
            agreed[:, k] = 100 * ordered[0].agreed
            continue
        samples = np.stack([model.right for model in ordered], axis=1)
        over_images[:, k] = 100 * samples.mean(axis=1)
        right[:, k] = 100 * (samples * weights).sum(axis=1)
        agreements = np.stack([model.agreed for model in ordered], axis=1)
        agreed[:, k] = 100 * (agreements * weights[:, :, None]).sum(axis=1)
    place = {cell: k for k, cell in enumerate(cells)}
    same, lost, gained = np.moveaxis(agreed, 2, 0)
    return Draws(place, right, same, lost, gained, over_images, by_seed)


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
