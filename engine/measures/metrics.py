"""From stored predictions to accuracy, RI and mRI: the arithmetic of the benchmark.

A grid is one table and one matrix: a row a model and set with its measures, and joint bootstrap
draws of them (`bootstrap`), a column a row. Every further number is a weighted mean of rows
(`Means`), taken of the values and of the draws alike; an interval is two quantiles of the draws.

ImageNet-RIB's definitions, with n downstream sets and A_i^(j) the accuracy in percent on set j of
the model fine-tuned on set i (of several seeds, their mean):
RI_i = 1/(n-1) sum_{j != i} (A_i^(j) - A_pre^(j)), and mRI is the mean of RI_i over i.

A campaign may fine-tune on sets (`downstreams`) other than those that it measures RI on (`sets`),
such as the upstream set. RI_i is then the mean over all of `sets` where i is not among them, and
mRI the mean over `downstreams`.

Disjoint RI and mRI leave out the sets that are related to the one fine-tuned on (`relations`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from types import MappingProxyType

import numpy as np
import pandas
from scipy import sparse

from engine.measures import behaviour, bootstrap, image_changes, predictions, relations
from engine.measures.bootstrap import DRAWS
from engine.measures.calibration import Temperature
from engine.measures.image_changes import ImageChange
from engine.measures.predictions import ImagePredictions, SetPredictions
from engine.measures.rows import PRE, Arm, Evaluation, ModelOnSet
from engine.measures.tables import without_unit

TOGETHER = 64  # evaluations whose draws are made at a time
KEY = [*Arm._fields, "downstream", "evaluated_on"]
CELL = ["arm", *KEY[-2:]]
ROBUSTNESS = "effective_robustness"


def measures() -> list[str]:
    """A cell's measures beside its accuracy, in the order of their columns."""
    return [*(name for name in behaviour.MEASURES if name != "accuracy"), ROBUSTNESS]


def column_name(measure: str) -> str:
    """The name of a measure's column with its unit."""
    return f"{measure}_{'pts' if measure == ROBUSTNESS else behaviour.MEASURES[measure].unit}"


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid's predictions, read and checked once.

    sets: those of RI. downstreams: those fine-tuned on. seeds: of the training.

    cells: a row a model and set, over the mean of its seeds: `KEY`, headline (whether tables show
    the arm), n (images), accuracy and the other measures in percent or points, NaN where a cell has
    none. Beside them whole numbers: arm, the place in `arms`; before, the row of the pre-trained
    model on the same set; on_upstream, that of the same model upstream, -1 where there is none.

    draws: by measure, float32 [B, cells], over images and seeds. over_images: of accuracy with the
    seeds as they are. by_seed: float64 [S, cells], accuracy of each seed; trained: the same as a
    table, a row a cell and seed. changes: the images that most rows gained or lost. related: the
    related sets (`relations.of`).
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
    related: pandas.DataFrame = field(
        default_factory=lambda: pandas.DataFrame(columns=relations.COLUMNS)
    )

    @functools.cached_property
    def elsewhere(self) -> pandas.DataFrame:
        """The cells that count in RI: fine-tuned models on the sets of RI but their own."""
        cells = self.cells
        counts = cells["downstream"].isin(self.downstreams) & cells["evaluated_on"].isin(self.sets)
        return cells[counts & (cells["downstream"] != cells["evaluated_on"])]

    def without_related(self, cells: pandas.DataFrame) -> pandas.DataFrame:
        """The cells whose set is not related to the one fine-tuned on."""
        pairs = zip(self.related["set"], self.related["related_to"], strict=True)
        keys = pandas.MultiIndex.from_frame(cells[["evaluated_on", "downstream"]])
        return cells[~keys.isin([*pairs])]

    @functools.cached_property
    def disjoint_mri(self) -> Means:
        """Disjoint mRI by arm: of the arms, and over the sets fine-tuned on, that have such an RI;
        `keys` says over how many (`columns`)."""
        cells = self.without_related(self.elsewhere)
        means = self.mean(cells, ["arm"], alike(cells), of="change")
        columns = cells.groupby("arm", sort=False)["downstream"].nunique()
        return replace(means, keys=means.keys.assign(columns=means.keys["arm"].map(columns)))

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
        group, weight = groups.ngroup().to_numpy(), weight.to_numpy(float)
        shape = len(self.cells), groups.ngroups
        after = sparse.csc_array((weight, (cells.index, group)), shape)
        before = sparse.csc_array((weight, (cells["before"], group)), shape)
        matrix = {"after": after, "before": before, "change": after - before}[of]
        keys = cells.drop_duplicates(list(by))[list(by)].reset_index(drop=True)
        return Means(self, keys, matrix)

    @functools.cached_property
    def mri(self) -> Means:
        """mRI by arm."""
        return self.mean(self.elsewhere, ["arm"], alike(self.elsewhere), of="change")

    @functools.cached_property
    def numbers(self) -> pandas.DataFrame:
        """A row an arm, set fine-tuned on and set evaluated on. An empty evaluated_on is the mean
        over the sets of RI that a model was not fine-tuned on, an empty downstream that over the
        models that were not fine-tuned on a set. The change is RI where evaluated_on is empty, and
        mRI where both are; all means of both count each set fine-tuned on alike.

        Columns: arm, downstream, evaluated_on, before_pct, accuracy_pct, change_pts, where sets are
        related also disjoint_change_pts (the same mean, without sets that are related to the one
        fine-tuned on), and every measure (`column_name`), with the ends of its interval where it
        has one (`Means.table`); NaN where there is no such number. A pre-trained model has no
        downstream and no change.
        """
        cells = self.cells
        others = cells["downstream"] != cells["evaluated_on"]
        others &= cells["downstream"].isin(["", *self.downstreams])
        is_trained = cells["method"] != PRE
        of_sets = cells[others & cells["evaluated_on"].isin(self.sets)]
        parts = [
            self._numbers(of_sets, [], alike(of_sets)),
            self._numbers(self.elsewhere, ["downstream"]),
            self._numbers(cells[others & is_trained], ["evaluated_on"]),
            self._numbers(cells, ["downstream", "evaluated_on"]),
        ]
        return pandas.concat(parts, ignore_index=True)

    @property
    def by_arm(self) -> pandas.DataFrame:
        """The `numbers` that are means over both sets."""
        return self.numbers.query("downstream == '' and evaluated_on == ''").drop(columns=CELL[1:])

    def _numbers(
        self, cells: pandas.DataFrame, by: Sequence[str], weight: pandas.Series | None = None
    ) -> pandas.DataFrame:
        """`numbers` by arm and `by`; weight: as in `mean`."""
        by, is_trained = ["arm", *by], cells["method"] != PRE
        before, after = self.mean(cells, by, weight, of="before"), self.mean(cells, by, weight)
        of_trained = None if weight is None else weight[is_trained]
        change = self.mean(cells[is_trained], by, of_trained, of="change")
        keys = before.keys.reindex(columns=CELL, fill_value="")
        tables = [keys.assign(before_pct=before.values())]
        tables += [after.table("accuracy_pct", clip=True), change.table("change_pts")]
        if len(self.related) and len(by) < len(CELL):
            left = self.without_related(cells[is_trained])
            of_left = alike(left) if weight is not None else None
            tables.append(self.mean(left, by, of_left, of="change").table("disjoint_change_pts"))
        shares = [name for name, each in behaviour.MEASURES.items() if each.is_share]
        tables += [after.table(column_name(k), k, clip=k in shares) for k in measures()]
        return functools.reduce(lambda a, b: a.merge(b, on=by, how="left"), tables)

    def named(self, table: pandas.DataFrame) -> pandas.DataFrame:
        """The table with the columns of its arms in place of their numbers."""
        arms = _named(pandas.DataFrame([self.arms[k] for k in table["arm"]], columns=Arm._fields))
        return pandas.concat([arms, table.drop(columns="arm").reset_index(drop=True)], axis=1)


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

    def draws(
        self, measure: str = "accuracy", places: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """float32 [B, K], or of the means at some places."""
        weights, of_cells = self.weights[:, places], self.grid.draws[measure]
        is_cell = np.diff(weights.indptr) == 1
        if is_cell.all() and (weights.data == 1).all():
            return of_cells[:, weights.indices]
        return (of_cells @ weights).astype(np.float32)

    def table(
        self, name: str, measure: str = "accuracy", *, clip: bool = False
    ) -> pandas.DataFrame:
        """Keys, NAME and the ends of its 95% interval, NaN where a mean has a cell without the
        measure. The ends are NAME_low and NAME_high, without NAME's unit. clip: to 0 and 100."""
        values = self.values(measure)
        ends, known = np.full((2, len(values)), np.nan), np.flatnonzero(~np.isnan(values))
        if measure in self.grid.draws and len(known):
            ends[:, known] = bootstrap.interval(self.draws(measure, known))
        low, high = ends.clip(0, 100) if clip else ends
        return self.keys.assign(
            **{name: values, f"{without_unit(name)}_low": low, f"{without_unit(name)}_high": high}
        )

    def p(self) -> np.ndarray:
        """Two-sided p [K] of "the mean accuracy is 0", of paired differences."""
        over_images = self.grid.over_images @ self.weights
        return bootstrap.p_values(self.values(), over_images, self.grid.by_seed @ self.weights)


def _named(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Rows that name arms, with the text of their settings, as tables have it."""
    return rows.assign(setting=rows["setting"].map(str)).astype({"alpha": float})


def alike(cells: pandas.DataFrame) -> pandas.Series:
    """The weights of cells in means by arm in which each set fine-tuned on counts alike."""
    columns = cells.groupby("arm")["downstream"].transform("nunique")
    return 1 / (columns * cells.groupby(["arm", "downstream"])["n"].transform("size"))


def gather(
    evaluations: Sequence[Evaluation],
    sets: Sequence[str],
    upstream: str = "",
    downstreams: Sequence[str] = (),
    *,
    families: Mapping[str, Sequence[str]] = MappingProxyType({}),
    draws: int = DRAWS,
) -> Grid:
    """Read every evaluation once; cells come in the order of the evaluations.

    sets: those that RI is measured on. downstreams: those fine-tuned on; empty: `sets`. Sets
    evaluated on but not among `sets` are reported, never part of RI. families: by name, the sets
    that one maker drew or made.

    Raises ValueError for fewer than two sets, an evaluation that is missing or given twice,
    unreadable or NaN predictions, and evaluations of one set that saw different images.
    """
    _check(evaluations, sets, downstreams or sets)
    temperatures = {  # by what was held out of its training; the pre-trained model was upstream
        (row.arm, row.downstream, row.seed): predictions.temperature_of(row.path)
        for row in evaluations
        if row.evaluated_on == (row.downstream or upstream)
    }
    by_set: dict[str, list[int]] = {}
    for k, row in enumerate(evaluations):
        by_set.setdefault(row.evaluated_on, []).append(k)
    whole = {  # what models were trained on may be evaluated on its hold-out
        name: min(places, key=lambda k: evaluations[k].on_downstream)
        for name, places in by_set.items()
    }
    photos = {name: predictions.photos_of(evaluations[k].path) for name, k in whole.items()}
    related = relations.of(photos, families)
    names = behaviour.names(behaviour.PER_IMAGE, behaviour.BEFORE_AFTER)
    shape = draws, len(evaluations)
    samples = {name: np.empty(shape, np.float32, order="F") for name in names}
    numbers: list[dict[str, float]] = [{} for _ in evaluations]
    changes: list[ImageChange] = []
    for places in by_set.values():
        places.sort(key=lambda k: (evaluations[k].on_downstream, evaluations[k].method != PRE))
        rows = [evaluations[k] for k in places]
        of_rows, of_measures, of_images = _of_set(rows, temperatures, draws)
        for k, row in zip(places, of_rows, strict=True):
            numbers[k] = row
        for number, name in enumerate(names):
            samples[name][:, places] = of_measures[:, :, number]
        changes += of_images
    models = list(dict.fromkeys(row.model for row in evaluations))
    changes.sort(key=lambda change: models.index(change.model))
    grid = grid_of(evaluations, numbers, samples, sets, upstream, downstreams or sets, changes)
    return replace(grid, related=related)


def grid_of(
    evaluations: Sequence[Evaluation],
    numbers: Sequence[Mapping[str, float]],
    samples: Mapping[str, np.ndarray],
    sets: Sequence[str],
    upstream: str,
    downstreams: Sequence[str],
    changes: Sequence[ImageChange] = (),
) -> Grid:
    """The grid of evaluations, from the numbers of each (n, and the measures by name) and their
    draws, float32 [B, evaluations] by measure."""
    arms = {arm: k for k, arm in enumerate(dict.fromkeys(row.arm for row in evaluations))}
    names = [*KEY, "seed", "headline", "arm"]
    rows = [(*row.key, row.seed, row.headline, arms[row.arm]) for row in evaluations]
    trained = _named(pandas.DataFrame(rows, columns=names))
    trained = trained.join(pandas.DataFrame(numbers)).assign(**{ROBUSTNESS: np.nan})
    cell = trained.groupby(["arm", "downstream", "evaluated_on"], sort=False).ngroup().to_numpy()
    order, size = np.lexsort((trained["seed"], cell)), np.bincount(cell)
    seeds = sorted(set(trained.loc[trained["method"] != PRE, "seed"])) or [0]
    # The pre-trained model has no seeds: its row stands for each of them.
    of_seed = np.arange(len(seeds)) % size[:, None] + (np.cumsum(size) - size)[:, None]
    by_seed = order[of_seed]
    cells = trained.iloc[by_seed[:, 0]].drop(columns="seed").reset_index(drop=True)
    for name in trained.columns.drop([*names, "n"]):
        cells[name] = trained[name].to_numpy(float)[by_seed].mean(axis=1)
    keys = list(zip(cells["arm"], cells["downstream"], cells["evaluated_on"], strict=True))
    place, before = {key: k for k, key in enumerate(keys)}, [arms[arm.before] for arm in arms]
    cells = cells.assign(
        before=[place[before[arm], "", name] for arm, _, name in keys],
        on_upstream=[place.get((arm, trained_on, upstream), -1) for arm, trained_on, _ in keys],
    )
    draws, over_images = dict(samples), samples["accuracy"]
    if len(seeds) > 1:
        weights = bootstrap.seed_weights(len(over_images), len(seeds))
        over_images = sum(over_images[:, places] for places in by_seed.T) / len(seeds)
        for name, of_rows in samples.items():
            pairs = zip(by_seed.T, weights.T, strict=True)
            drawn = sum(of_rows[:, places] * weight[:, None] for places, weight in pairs)
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
        trained.iloc[order].reset_index(drop=True),
        changes,
    )


def robustness_improvement(
    downstream: str, after: Mapping[str, float], before: Mapping[str, float], sets: Sequence[str]
) -> float:
    """RI of one fine-tuned model: its mean change in accuracy over the other sets (points)."""
    return fmean(after[name] - before[name] for name in sets if name != downstream)


def _of_set(
    rows: Sequence[Evaluation],
    temperatures: Mapping[tuple[Arm, str, int], Temperature | None],
    draws: int,
) -> tuple[list[dict[str, float]], np.ndarray, list[ImageChange]]:
    """Of each evaluation of a set its numbers (n, and measures in percent), their draws, float32
    [B, rows, measures], and the images that most models gained or lost.

    rows: pre-trained models first. Models that were trained on the set come last, and are read
    apart: they may have seen a hold-out only.
    """
    numbers, samples = [], []
    of_set, on_downstream = SetPredictions(), SetPredictions()
    before: dict[str, ImagePredictions] = {}  # by model
    answers: dict[str, list[tuple[Evaluation, np.ndarray]]] = {}
    for bank, is_on in ((of_set, False), (on_downstream, True)):
        of_bank = [row for row in rows if row.on_downstream == is_on]
        counts = np.empty(0)
        for start in range(0, len(of_bank), TOGETHER):
            sums = []
            for row in of_bank[start : start + TOGETHER]:
                scaled = temperatures.get((row.arm, row.downstream, row.seed))
                after = bank.add(row.path, row.model, scaled)
                same_images = not is_on or bank.images.equals(of_set.images)
                measured = behaviour.of_images(
                    after, before.get(row.model) if same_images else None
                )
                of_sources = np.stack([bank.by_source(of) for of in measured.values()], axis=1)
                scales = np.array([behaviour.MEASURES[name].scale for name in measured])
                means = (scales * of_sources.sum(axis=0) / bank.total.sum()).tolist()
                of_all = {
                    name: behaviour.MEASURES[name].of(after, bank.codes)
                    for name in behaviour.names(behaviour.WHOLE_SET)
                }
                n = len(after.label)
                numbers.append({"n": n, **dict(zip(measured, means, strict=True)), **of_all})
                sums.append(of_sources.astype(np.float32))
                if row.method == PRE:
                    before[row.model] = after
                if row.headline and not is_on:
                    top1 = after.top1.astype(np.int32)
                    answers.setdefault(row.model, []).append((row, top1))
            counts = counts if start else bootstrap.counts(bank.sources, draws)
            drawn = bootstrap.means(counts, bank.total, np.concatenate(sums, axis=1))
            samples.append(scales.astype(np.float32) * drawn.reshape(draws, len(sums), -1))
    changes = [
        change for of_model in answers.values() for change in image_changes.of_set(of_model, of_set)
    ]
    return numbers, np.concatenate(samples, axis=1), changes


def _check(
    evaluations: Sequence[Evaluation], sets: Sequence[str], downstreams: Sequence[str]
) -> None:
    """Raise ValueError unless every model of the grid was evaluated once on every set that its
    numbers need: all `sets` after fine-tuning on each of `downstreams`, with every seed, and before
    it wherever it was after it."""
    if len(set(sets)) < 2:
        raise ValueError(f"RI needs two or more distinct sets, got {list(sets)}")
    seen = Counter((row.cell, row.seed) for row in evaluations)
    for (cell, seed), count in seen.items():
        if count > 1:
            raise ValueError(f"{cell}, seed {seed}, is given {count} times")
    trained = dict.fromkeys(cell for cell, _ in seen if cell.method != PRE)
    for arm in dict.fromkeys(cell.arm for cell in trained):
        trained |= dict.fromkeys(ModelOnSet(*arm, i, j) for i in downstreams for j in sets)
    seeds = sorted({seed for cell, seed in seen if cell.method != PRE})
    needed = [(ModelOnSet(*cell.arm.before, "", cell.evaluated_on), 0) for cell in trained]
    needed += [(cell, seed) for cell in trained for seed in seeds]
    if missing := [(cell, seed) for cell, seed in needed if (cell, seed) not in seen]:
        cell, seed = missing[0]
        raise ValueError(
            f"{cell}, seed {seed}, is missing from the grid, the first of {len(missing)}: finish "
            "the campaign, and give all methods the same seeds"
        )
