"""From stored predictions to accuracy, RI and mRI: the arithmetic of the benchmark.

Evaluation keeps one row an image for every model, so every number of a report can be computed,
checked and re-sampled later without a GPU. This module is that step, and needs no torch.

A grid is one table and one matrix: a row a model and set with its measures, and joint bootstrap
draws of them (`bootstrap`), a column a row. Every further number is a weighted mean of rows
(`Means`), taken of the values and of the draws alike; an interval is two quantiles of the draws.

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

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from scipy import sparse

from engine.measures import behaviour, bootstrap, image_changes
from engine.measures.bootstrap import DRAWS
from engine.measures.image_changes import ImageChange
from engine.measures.predictions import ImagePredictions, SetPredictions
from engine.measures.rows import PRE, Arm, Evaluation, ModelOnSet

TOGETHER = 64  # evaluations whose draws are made at a time
KEY = [*Arm._fields, "downstream", "evaluated_on"]
ROBUSTNESS = "effective_robustness"


def measures() -> list[str]:
    """A cell's measures beside its accuracy, in the order of their columns."""
    of_images = (name for name in behaviour.OF_IMAGES if name != "accuracy")
    return [*of_images, *behaviour.OF_CHANGES, *behaviour.OF_SETS, ROBUSTNESS]


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid's predictions, read and checked once.

    sets: those of RI. downstreams: those fine-tuned on. seeds: of the training.

    cells: a row a model and set, over the mean of its seeds: `KEY`, headline (whether tables show
    the arm), n (images), accuracy and the other measures in percent or points, NaN where a cell has
    none. Beside them whole numbers: arm, the place in `arms`; before and on_upstream, the rows of
    the pre-trained model on the same set and of the same model upstream, -1 where there is none.

    draws: by measure, float32 [B, cells], over images and seeds. over_images: of accuracy with the
    seeds as they are. by_seed: float64 [S, cells], accuracy of each seed; trained: the same as a
    table, a row a cell and seed. changes: the images that most rows gained or lost.
    """

    sets: tuple[str, ...]
    upstream: str
    downstreams: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    cells: pandas.DataFrame
    draws: Mapping[str, np.ndarray]
    over_images: np.ndarray
    by_seed: np.ndarray
    trained: pandas.DataFrame
    changes: Sequence[ImageChange] = ()

    @functools.cached_property
    def elsewhere(self) -> pandas.DataFrame:
        """The cells that count in RI: fine-tuned models on the sets of RI but their own."""
        cells = self.cells
        counts = cells["downstream"].isin(self.downstreams) & cells["evaluated_on"].isin(self.sets)
        return cells[counts & (cells["downstream"] != cells["evaluated_on"])]

    def mean(
        self,
        cells: pandas.DataFrame,
        by: Sequence[str],
        weight: pandas.Series | None = None,
        *,
        of: str = "after",
    ) -> Means:
        """The mean over each group of cells, of equal weight where none is given.

        of: `after` of the cells, `before` of the pre-trained models beside them, or `change`.
        """
        groups = cells.groupby(list(by), sort=False)
        if weight is None:
            weight = 1 / groups["n"].transform("size")
        group, weights = groups.ngroup().to_numpy(), weight.to_numpy(float)
        parts = []
        if of != "before":
            parts.append((weights, cells.index.to_numpy()))
        if of != "after":
            parts.append((weights if of == "before" else -weights, cells["before"].to_numpy()))
        values, places = (np.concatenate(part) for part in zip(*parts, strict=True))
        at = (places, np.tile(group, len(parts)))
        matrix = sparse.csc_array((values, at), shape=(len(self.cells), groups.ngroups))
        keys = cells.drop_duplicates(list(by))[list(by)].reset_index(drop=True)
        return Means(self, keys, matrix)

    @functools.cached_property
    def ri(self) -> Means:
        """RI, by arm and set fine-tuned on."""
        return self.mean(self.elsewhere, ["arm", "downstream"], of="change")

    @functools.cached_property
    def mri(self) -> Means:
        """mRI by arm."""
        others = self.elsewhere.groupby(["arm", "downstream"])["n"].transform("size")
        weight = 1 / (len(self.downstreams) * others)
        return self.mean(self.elsewhere, ["arm"], weight, of="change")

    def named(self, table: pandas.DataFrame) -> pandas.DataFrame:
        """The table with the columns of its arms in place of their numbers."""
        arms = pandas.DataFrame([self.arms[k] for k in table["arm"]], columns=Arm._fields)
        arms = arms.astype({"alpha": float})
        return pandas.concat([arms, table.drop(columns="arm").reset_index(drop=True)], axis=1)

    def with_measure(self, name: str, values: np.ndarray, draws: np.ndarray | None) -> Grid:
        """The grid with a measure's values [cells] and draws [B, cells]."""
        more = {} if draws is None else {name: draws}
        cells = self.cells.assign(**{name: values})
        return dataclasses.replace(self, cells=cells, draws={**self.draws, **more})


@dataclass(frozen=True, eq=False)
class Means:
    """K weighted means of a grid's cells: the columns that name them [K rows], and what each cell
    counts, [cells, K]."""

    grid: Grid
    keys: pandas.DataFrame
    weights: sparse.csc_array

    def values(self, measure: str = "accuracy") -> np.ndarray:
        """[K]; NaN where a cell lacks the measure."""
        return self.grid.cells[measure].to_numpy(float) @ self.weights

    def draws(self, measure: str = "accuracy") -> np.ndarray:
        """float32 [B, K]."""
        is_cell = np.diff(self.weights.indptr) == 1
        if is_cell.all() and (self.weights.data == 1).all():
            return self.grid.draws[measure][:, self.weights.indices]
        return (self.grid.draws[measure] @ self.weights).astype(np.float32)

    def table(
        self, name: str, measure: str = "accuracy", *, clip: bool = False
    ) -> pandas.DataFrame:
        """Keys, NAME and the ends of its 95% interval, of the means that have no cell without the
        measure. The ends are NAME_low and NAME_high, without a unit that NAME ends in (`_pct`,
        `_pts`). clip: to 0 and 100."""
        values = self.values(measure)
        known = np.flatnonzero(~np.isnan(values))
        low = high = np.full(len(known), np.nan)
        if measure in self.grid.draws and len(known):
            low, high = bootstrap.interval(self.pick(known).draws(measure))
        if clip:
            low, high = low.clip(0, 100), high.clip(0, 100)
        keys = self.keys.iloc[known].reset_index(drop=True)
        base = name.removesuffix("_pct").removesuffix("_pts")
        return keys.assign(**{name: values[known], f"{base}_low": low, f"{base}_high": high})

    def pick(self, places: np.ndarray) -> Means:
        """The means at these places."""
        return Means(self.grid, self.keys.iloc[places], self.weights[:, places])

    def less(self, other: Means, keys: pandas.DataFrame) -> Means:
        """The differences to as many other means, in pairs."""
        return Means(self.grid, keys, self.weights - other.weights)

    def p(self) -> np.ndarray:
        """Two-sided p [K] of "the mean accuracy is 0", of paired differences."""
        over_images = self.grid.over_images @ self.weights
        return bootstrap.p_values(self.values(), over_images, self.grid.by_seed @ self.weights)


@dataclass(frozen=True)
class Read:
    """Evaluations of a grid's models, in order: their numbers (n, and by measure in percent), and
    by measure draws, float32 [B, rows] in percent. changes: by model and set, as of `Grid`."""

    evaluations: Sequence[Evaluation]
    numbers: list[dict[str, float]]
    draws: Mapping[str, np.ndarray]
    changes: dict[tuple[str, str], list[ImageChange]]


def gather(
    evaluations: Sequence[Evaluation],
    sets: Sequence[str],
    upstream: str = "",
    downstreams: Sequence[str] = (),
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Grid:
    """Read every evaluation once; cells come in the order of the evaluations.

    sets: those that RI is measured on. downstreams: those fine-tuned on; empty: `sets`. Sets
    evaluated on but not among `sets` are reported, never part of RI.

    Raises ValueError for fewer than two sets, duplicates, an incomplete grid, cells that lack a
    seed that others have, arms that are the headline on some sets only, unreadable or NaN
    predictions, and evaluations of one set that saw different images.
    """
    seeds = _check_cells(evaluations)
    _check_complete(evaluations, sets, downstreams or sets)
    by_set: dict[str, list[int]] = {}
    for k, row in enumerate(evaluations):
        by_set.setdefault(row.evaluated_on, []).append(k)
    names = [*behaviour.OF_IMAGES, *behaviour.OF_CHANGES]
    shape = draws, len(evaluations)
    columns = {name: np.empty(shape, np.float32, order="F") for name in names}
    read = Read(evaluations, [{}] * len(evaluations), columns, {})
    for places in by_set.values():
        _read(read, places, seed)
    return grid_of(read, seeds, sets, upstream, downstreams or sets)


def grid_of(
    read: Read,
    seeds: Sequence[int],
    sets: Sequence[str],
    upstream: str,
    downstreams: Sequence[str],
) -> Grid:
    """The grid of evaluations that were read, each cell trained with all `seeds`."""
    names = [*KEY, "seed", "headline"]
    rows = [(*row.key, row.seed, row.headline) for row in read.evaluations]
    trained = pandas.DataFrame(rows, columns=names).astype({"alpha": float})
    trained = trained.join(pandas.DataFrame(read.numbers))
    places: dict[ModelOnSet, list[int]] = {}
    for k, row in enumerate(read.evaluations):
        places.setdefault(row.cell, []).append(k)
    for of_cell in places.values():
        of_cell.sort(key=lambda k: read.evaluations[k].seed)
    by_seed = np.array(  # the pre-trained model has no seeds
        [of_cell * len(seeds) if len(of_cell) == 1 else of_cell for of_cell in places.values()]
    )
    cells = trained.iloc[by_seed[:, 0]].drop(columns="seed").reset_index(drop=True)
    for name in trained.columns.drop([*names, "n"]):
        cells[name] = trained[name].to_numpy(float)[by_seed].mean(axis=1)
    number = {cell: k for k, cell in enumerate(places)}
    arms = {arm: k for k, arm in enumerate(dict.fromkeys(cell.arm for cell in places))}
    cells = cells.assign(
        arm=[arms[cell.arm] for cell in places],
        before=[
            number.get(ModelOnSet(*cell.arm.before, "", cell.evaluated_on), -1) for cell in places
        ],
        on_upstream=[
            number.get(ModelOnSet(*cell.arm, cell.downstream, upstream), -1) for cell in places
        ],
        **{ROBUSTNESS: np.nan},
    )
    draws, over_images = dict(read.draws), read.draws["accuracy"]
    if len(seeds) > 1:
        weights = bootstrap.seed_weights(len(over_images), len(seeds))
        over_images = sum(over_images[:, of_seed] for of_seed in by_seed.T) / len(seeds)
        for name, of_rows in read.draws.items():
            pairs = zip(by_seed.T, weights.T, strict=True)
            drawn = sum(of_rows[:, of_seed] * weight[:, None] for of_seed, weight in pairs)
            draws[name] = np.asfortranarray(drawn)
    return Grid(
        tuple(sets),
        upstream,
        tuple(downstreams),
        tuple(seeds),
        tuple(arms),
        cells,
        draws,
        np.asarray(over_images),
        trained["accuracy"].to_numpy(float)[by_seed.T],
        trained.iloc[np.concatenate([*places.values()])].reset_index(drop=True),
        [
            change
            for key in dict.fromkeys((row.model, row.evaluated_on) for row in read.evaluations)
            for change in read.changes.get(key, ())
        ],
    )


def robustness_improvement(
    downstream: str, after: Mapping[str, float], before: Mapping[str, float], sets: Sequence[str]
) -> float:
    """RI of one fine-tuned model: its mean change in accuracy over the other sets (points)."""
    changes = [after[name] - before[name] for name in sets if name != downstream]
    return math.fsum(changes) / len(changes)


def _read(read: Read, places: Sequence[int], seed: int) -> None:
    """All evaluations of one set, at these places. Models that were trained on the set may have
    seen a hold-out only, so they are read apart."""
    of_set, on_downstream = SetPredictions(), SetPredictions()
    before: dict[str, ImagePredictions] = {}  # by model
    answers: dict[str, list[tuple[Evaluation, np.ndarray]]] = {}
    first = sorted(places, key=lambda k: read.evaluations[k].method != PRE)
    for bank, is_on in ((of_set, False), (on_downstream, True)):
        of_bank = [k for k in first if read.evaluations[k].on_downstream == is_on]
        counts = np.empty(0)
        for start in range(0, len(of_bank), TOGETHER):
            together, sums = of_bank[start : start + TOGETHER], []
            for k in together:
                row = read.evaluations[k]
                after = bank.add(row.path, row.model)
                same_images = bank is of_set or bank.same_images(of_set)
                measured = behaviour.of_images(
                    after, before.get(row.model) if row.method != PRE and same_images else None
                )
                of_sources = np.stack([bank.by_source(of) for of in measured.values()], axis=1)
                means = (100 * of_sources.sum(axis=0) / bank.total.sum()).tolist()
                numbers = {"n": len(after.label), **dict(zip(measured, means, strict=True))}
                of_all = {name: of(after, bank.codes) for name, of in behaviour.OF_SETS.items()}
                read.numbers[k] = numbers | of_all
                sums.append(of_sources.astype(np.float32))
                if row.method == PRE:
                    before[row.model] = after
                if image_changes.is_counted(row):
                    top1 = after.top1.astype(np.int32)
                    answers.setdefault(row.model, []).append((row, top1))
            draws = len(read.draws["accuracy"])
            counts = counts if start else bootstrap.counts(bank.sources, draws, seed)
            columns = np.concatenate(sums, axis=1)
            samples = bootstrap.means(counts, bank.total, columns).reshape(draws, len(together), -1)
            for number, of_measure in enumerate(read.draws.values()):
                of_measure[:, together] = 100 * samples[:, :, number]
    for model, of_model in answers.items():
        counted, top1 = zip(*of_model, strict=True)
        key = model, counted[0].evaluated_on
        read.changes[key] = image_changes.of_set(counted, of_set, top1)


def _check_cells(evaluations: Sequence[Evaluation]) -> tuple[int, ...]:
    """The seeds that every cell was trained with."""
    paths: dict[ModelOnSet, dict[int, Path]] = {}
    headline: dict[Arm, bool] = {}
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
        if headline.setdefault(row.arm, row.headline) != row.headline:
            raise ValueError(
                f"{row.arm} is the headline of its method for some sets or seeds only: a table's "
                "row shows one alpha, so name the same one as headline for all of them"
            )
    trained = {cell: set(by_seed) for cell, by_seed in paths.items() if cell.method != PRE}
    seeds = set[int]().union(*trained.values())
    for cell, seeds_of_cell in trained.items():
        if lacking := sorted(seeds - seeds_of_cell):
            raise ValueError(
                f"{cell} lacks seed {', '.join(map(str, lacking))}, which others have: "
                "train it with the same seeds"
            )
    return tuple(sorted(seeds)) or (0,)


def _check_complete(
    evaluations: Sequence[Evaluation], sets: Sequence[str], downstreams: Sequence[str]
) -> None:
    """That every arm was fine-tuned on all `downstreams` and evaluated on all `sets`, and the
    pre-trained model wherever models of it were."""
    if len(sets) < 2 or len(set(sets)) != len(sets):
        raise ValueError(f"RI needs two or more distinct sets, got {list(sets)}")
    seen: dict[Arm, dict[str, set[str]]] = {}
    places: dict[str, dict[str, None]] = {}  # by pre-trained model, where models of it were seen
    for row in evaluations:
        seen.setdefault(row.arm, {}).setdefault(row.downstream, set()).add(row.evaluated_on)
        places.setdefault(row.model, {})[row.evaluated_on] = None
    for arm, columns in seen.items():
        if arm.before not in seen:
            raise ValueError(f"{arm.before} was not evaluated, and {arm} was: evaluate it first")
        is_pre = arm.method == PRE
        if missing := [name for name in downstreams if name not in columns and not is_pre]:
            raise ValueError(
                f"the grid is incomplete: {arm} was not fine-tuned on {', '.join(missing)}. "
                "Finish the campaign"
            )
        expected = dict.fromkeys([*sets, *places[arm.model]] if is_pre else sets)
        for downstream in [""] if is_pre else downstreams:
            if missing := [name for name in expected if name not in columns[downstream]]:
                trained = f" fine-tuned on {downstream}" if downstream else ""
                raise ValueError(
                    f"{arm}{trained} was not evaluated on {', '.join(missing)}: evaluate it there "
                    "first"
                )
