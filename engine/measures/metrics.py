"""Compute accuracy, RI and mRI from stored predictions.

A grid is one table and one matrix: one row per model and dataset with its measures, and their joint
bootstrap draws (`bootstrap`), one column per row. All other numbers are weighted means of rows
(`Means`), of values and draws alike. An interval consists of two quantiles of the draws, widened by
the error over training seeds (`seeds`).

ImageNet-RIB's definitions, with n downstream datasets and A_i^(j) the accuracy in percent on
dataset j of the model fine-tuned on dataset i (averaged over seeds):
RI_i = 1/(n-1) sum_{j != i} (A_i^(j) - A_pre^(j)), and mRI is the mean of RI_i over i.

A campaign may fine-tune on datasets (`downstreams`) other than those of RI (`sets`), such as the
upstream dataset, and on unions of datasets. RI_i is the mean over all of `sets` except those that i
trains on, and mRI the mean over `downstreams`. Accuracy on a union is the mean over its datasets.

Disjoint RI and mRI exclude datasets related to the downstream dataset (`disjoint`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas
from scipy import sparse

from engine.measures import bootstrap, evaluated, paired, predictions, scores, seeds
from engine.measures.bootstrap import DRAWS
from engine.measures.evaluated import Answers
from engine.measures.paired import ImageError
from engine.measures.photo_disjoint import COLUMNS, related_datasets
from engine.measures.rows import (
    PRE,
    REPLICATE,
    TEST,
    Arm,
    Evaluation,
    ModelOnSet,
    of_role,
)
from engine.measures.seeds import SeedError
from engine.measures.tables import rows, with_ends
from engine.measures.temperature_scaling import temperature_of

KEY = [*Arm._fields, "downstream", "evaluated_on"]
CELL = ["arm", *KEY[-2:]]
ROBUSTNESS = "effective_robustness"
EXACT = 1e-9  # points by which sums of equal accuracies can differ


def measures() -> list[str]:
    """A cell's measures except accuracy, in the order of their columns."""
    return [*(name for name in scores.METRICS if name != "accuracy"), ROBUSTNESS]


def column_name(measure: str) -> str:
    """The name of a measure's column with its unit."""
    return f"{measure}_{'pts' if measure == ROBUSTNESS else scores.METRICS[measure].unit}"


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid's predictions, read and checked once.

    sets: datasets of RI. downstreams: downstream datasets and unions. seeds: training seeds.

    cells: one row per model and dataset, averaged over seeds: `KEY`, headline (whether tables show
    the arm), on_downstream (whether the model was fine-tuned on the dataset), images, accuracy
    and the other measures in percent or points, NaN if a cell has none. Integer columns: arm, the
    index in `arms`; before, the row of the pretrained model on the same dataset; on_upstream, the
    row of the same model upstream, -1 if there is none.

    draws: by measure, float32 [B, cells], over images, with fixed seeds. by_seed: by measure,
    float64 [S, cells]; trained: the same as a table, one row per cell and seed. again: float64
    [cells], the accuracy of a second training of some columns (seed replicates), NaN for others;
    None without replicates. answers: by dataset, those of the models that were not trained on it,
    with the cell of each; a cell has one for each seed. related: the related datasets
    (`photo_disjoint.related_datasets`), empty if excluding them changes no RI.
    """

    sets: tuple[str, ...]
    upstream: str | None
    downstreams: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    cells: pandas.DataFrame
    draws: Mapping[str, np.ndarray]
    by_seed: Mapping[str, np.ndarray]
    trained: pandas.DataFrame
    again: np.ndarray | None = None
    answers: Mapping[str, Answers] = field(default_factory=dict)
    related: pandas.DataFrame = field(default_factory=lambda: pandas.DataFrame(columns=COLUMNS))

    @functools.cached_property
    def ri_cells(self) -> pandas.DataFrame:
        """The cells that count in RI: fine-tuned models on the other datasets of RI."""
        cells = self.cells
        counts = cells["downstream"].isin(self.downstreams) & cells["evaluated_on"].isin(self.sets)
        return cells[counts & ~cells["on_downstream"]]

    def without_related(self, cells: pandas.DataFrame) -> pandas.DataFrame:
        """The cells whose dataset is not related to the downstream dataset."""
        pairs = zip(self.related["set"], self.related["related_to"], strict=True)
        keys = pandas.MultiIndex.from_frame(cells[["evaluated_on", "downstream"]])
        return cells[~keys.isin([*pairs])]

    @functools.cached_property
    def disjoint_mri(self) -> Means:
        """Disjoint mRI by arm, over the downstream datasets that have a disjoint RI; `keys`
        contains their number (`columns`)."""
        cells = self.without_related(self.ri_cells)
        means = self.mean(cells, ["arm"], of="change")
        columns = cells.groupby("arm", sort=False)["downstream"].nunique()
        return replace(means, keys=means.keys.assign(columns=means.keys["arm"].map(columns)))

    def mean(self, cells: pandas.DataFrame, by: Sequence[str], *, of: str = "after") -> Means:
        """The mean over each group of cells, with equal weights; by `arm` alone, downstream
        datasets have equal weights.

        of: `after` for the cells, `before` for the pretrained models on the same datasets, or
        `change`.
        """
        groups = cells.groupby(list(by), sort=False)
        size = groups["images"].transform("size")
        if list(by) == ["arm"]:
            of_column = cells.groupby(["arm", "downstream"])["images"].transform("size")
            size = groups["downstream"].transform("nunique") * of_column
        group, weight = groups.ngroup().to_numpy(), (1 / size).to_numpy(float)
        shape = len(self.cells), groups.ngroups
        after = sparse.csc_array((weight, (cells.index, group)), shape)
        before = sparse.csc_array((weight, (cells["before"], group)), shape)
        matrix = {"after": after, "before": before, "change": after - before}[of]
        keys = cells.drop_duplicates(list(by))[list(by)].reset_index(drop=True)
        return Means(self, keys, matrix)

    @functools.cached_property
    def seeds_by_arm(self) -> pandas.DataFrame:
        """By arm: model, setting, whether it depends on the seed (`varies`), and whether the
        variance over seeds is pooled over it (`pools`): if it varies, trains, and tables show
        it."""
        accuracy = self.by_seed["accuracy"]
        changes = (accuracy != accuracy[0]).any(axis=0)
        if self.again is not None:
            changes |= ~np.isnan(self.again) & (self.again != accuracy[0])
        by_arm = self.cells.assign(varies=changes).groupby("arm")
        table = by_arm[["model", "setting", "headline", "trains"]].first()
        table["varies"] = by_arm["varies"].any()
        table["pools"] = table["varies"] & table.pop("headline") & table.pop("trains")
        return table

    @property
    def accuracies(self) -> pandas.DataFrame:
        """The cells' `KEY`, images, accuracy_pct and headline."""
        columns = [*KEY, "images", "accuracy", "headline"]
        return self.cells[columns].rename(columns={"accuracy": "accuracy_pct"})

    @functools.cached_property
    def mri(self) -> Means:
        """mRI by arm."""
        return self.mean(self.ri_cells, ["arm"], of="change")

    @functools.cached_property
    def numbers(self) -> pandas.DataFrame:
        """One row per arm, downstream dataset and dataset evaluated on. An empty evaluated_on is
        the mean over the other datasets of RI, an empty downstream the mean over the models not
        fine-tuned on the dataset. The change is RI if evaluated_on is empty, and mRI if both are;
        means over both weight downstream datasets equally.

        Columns: arm, downstream, evaluated_on, before_pct, accuracy_pct, change_pts, if datasets
        are related also disjoint_change_pts (without related datasets), and every measure
        (`column_name`), with the bounds of its interval if it has one (`Means.table`); NaN if
        undefined. A pretrained model of all columns has no downstream, and none has a change.
        """
        cells = self.cells
        others = ~cells["on_downstream"]
        others &= cells["downstream"].isin(["", *self.downstreams])
        has_mean = (cells["method"] != PRE) | (cells["downstream"] != "")
        parts = [
            self._numbers(cells[others & cells["evaluated_on"].isin(self.sets)], []),
            self._numbers(self.ri_cells, ["downstream"]),
            self._numbers(cells[others & has_mean], ["evaluated_on"]),
            self._numbers(cells, ["downstream", "evaluated_on"]),
        ]
        return pandas.concat(parts, ignore_index=True)

    @property
    def by_arm(self) -> pandas.DataFrame:
        """The `numbers` that are means over both kinds of datasets."""
        return self.numbers.query("downstream == '' and evaluated_on == ''").drop(columns=CELL[1:])

    def _numbers(self, cells: pandas.DataFrame, by: Sequence[str]) -> pandas.DataFrame:
        """`numbers` by arm and `by`."""
        by, trained = ["arm", *by], cells[cells["method"] != PRE]
        before, after = self.mean(cells, by, of="before"), self.mean(cells, by)
        change = self.mean(trained, by, of="change")
        keys = before.keys.reindex(columns=CELL, fill_value="")
        tables = [keys.assign(before_pct=before.values())]
        tables += [after.table("accuracy_pct", clip=True), change.table("change_pts")]
        if len(self.related) and len(by) < len(CELL):
            left = self.without_related(trained)
            tables.append(self.mean(left, by, of="change").table("disjoint_change_pts"))
        shares = [name for name, each in scores.METRICS.items() if each.is_share]
        tables += [after.table(column_name(k), k, clip=k in shares) for k in measures()]
        return functools.reduce(lambda a, b: a.merge(b, on=by, how="left"), tables)

    def named(self, table: pandas.DataFrame) -> pandas.DataFrame:
        """The table with the columns of its arms instead of their indices."""
        arms = _named(pandas.DataFrame([self.arms[k] for k in table["arm"]], columns=Arm._fields))
        return pandas.concat([arms, table.drop(columns="arm").reset_index(drop=True)], axis=1)


@dataclass(frozen=True, eq=False)
class Means:
    """K weighted means of a grid's cells: the columns that name them [K rows], and the weights
    [cells, K]."""

    grid: Grid
    keys: pandas.DataFrame
    weights: sparse.csc_array

    def values(self, measure: str = "accuracy") -> np.ndarray:
        """[K]; NaN if a cell lacks the measure."""
        return self.grid.cells[measure].to_numpy(float) @ self.weights

    def draws(
        self, measure: str = "accuracy", places: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """float32 [B, K], or only the means at some indices."""
        weights, of_cells = self.weights[:, places], self.grid.draws[measure]
        is_cell = np.diff(weights.indptr) == 1
        if is_cell.all() and (weights.data == 1).all():
            return of_cells[:, weights.indices]
        return (of_cells @ weights).astype(np.float32)

    def table(
        self, name: str, measure: str = "accuracy", *, clip: bool = False
    ) -> pandas.DataFrame:
        """Keys, NAME and the bounds of its 95% interval, NaN if a cell lacks the measure. The
        bounds are NAME_low and NAME_high, without NAME's unit. clip: to 0 and 100."""
        values = self.values(measure)
        ends, known = np.full((2, len(values)), np.nan), np.flatnonzero(~np.isnan(values))
        if measure in self.grid.draws and len(known):
            samples = self.draws(measure, known)
            over_images = bootstrap.interval(samples)
            if clip:
                of_cells = self.grid.cells["sources"].to_numpy(float)[self.weights.indices]
                sources = np.minimum.reduceat(of_cells, self.weights.indptr[:-1])[known]
                over_images = bootstrap.ends_of_shares(values[known], samples, over_images, sources)
            error = SeedError(*(of[known] for of in self.seeds(measure)))
            ends[:, known] = seeds.widened(values[known], over_images, error)
        return self._with_ends(name, values, ends.clip(0, 100) if clip else ends)

    def tested(self, name: str) -> pandas.DataFrame:
        """Keys, NAME and the bounds of its 95% interval, and two-sided p of "it is 0", for paired
        differences in accuracy (`paired.tested`)."""
        ends, p = paired.tested(self.values(), [self.images, self.seeds()])
        return self._with_ends(name, self.values(), ends).assign(p=p)

    @functools.cached_property
    def images(self) -> ImageError:
        """The error over images of each paired difference in accuracy, which has no cell of a
        model on a dataset that it was trained on."""
        by_cell, used, weights = self.weights.tocsr(), [], []
        for each in self.grid.answers.values():
            count = np.bincount(each.places)[each.places]
            of_models = sparse.diags_array(1 / count) @ by_cell[each.places]
            if of_models.nnz:
                used.append(each.scores)
                weights.append(sparse.csc_array(of_models))
        if not used:  # there is no pair
            return ImageError(np.zeros(len(self.keys)), np.ones(len(self.keys)))
        return paired.image_error(used, weights)

    def seeds(self, measure: str = "accuracy") -> SeedError:
        """The error over training seeds of each mean. With a single seed, it is known only for
        accuracy, from columns that were trained twice, and for means over all columns."""
        grid, keys = self.grid, self.keys
        arms = [name for name in ("arm", "against") if name in keys]
        if len(grid.seeds) > 1:
            error = seeds.of_mean(grid.by_seed[measure] @ self.weights)
        elif grid.again is not None and measure == "accuracy" and "downstream" not in keys and arms:
            replicated, accuracy = ~np.isnan(grid.again), grid.cells["accuracy"].to_numpy(float)
            change = np.where(replicated, grid.again - accuracy, 0)
            columns = pandas.factorize(grid.cells["downstream"].replace("", None))[0]
            error = seeds.of_replicates(change, replicated, columns, self.weights)
            # Of the replicated dataset, the mean of the others' variances counts.
            variance = pandas.Series(error.variance)
            by_arm = variance.groupby([keys[name].to_numpy() for name in arms])
            variance = variance.fillna(by_arm.transform("mean"))
            error = SeedError(variance.to_numpy(), error.freedom)
        else:
            return seeds.none(len(keys))
        if not arms:
            return error
        of_arms = [grid.seeds_by_arm.loc[keys[name]].reset_index(drop=True) for name in arms]
        same = keys.drop(columns=arms).assign(model=of_arms[0]["model"], at=of_arms[0]["setting"])
        groups = same.groupby(list(same)).ngroup()
        varies = np.any([of["varies"] for of in of_arms], axis=0)
        pools = np.all([of["pools"] for of in of_arms], axis=0)
        return seeds.moderated(error, groups, varies, pools, of_pairs=len(arms) > 1)

    def _with_ends(self, name: str, values: np.ndarray, ends: np.ndarray) -> pandas.DataFrame:
        """The keys with the numbers and their intervals; what is 0 up to rounding is 0."""
        values = np.where(np.abs(values) < EXACT, 0, values)
        ends = np.where(np.abs(ends) < seeds.ROUNDING, 0, ends)
        columns = zip(with_ends(name), (values, *ends), strict=True)
        return self.keys.assign(**dict(columns))


def _named(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Rows that name arms, with their settings as text, for tables."""
    return rows.assign(setting=rows["setting"].map(str)).astype({"alpha": float})


def gather(
    evaluations: Sequence[Evaluation],
    sets: Sequence[str],
    upstream: str | None = None,
    downstreams: Sequence[str] = (),
    *,
    makers: Mapping[str, Sequence[str]] = MappingProxyType({}),
    draws: int = DRAWS,
) -> Grid:
    """Read every evaluation of the roles `test` and `replicate` once; cells come in the order of
    the evaluations.

    sets: datasets of RI. downstreams: downstream datasets; empty: `sets`. Other datasets are
    reported but never part of RI. makers: datasets by maker.

    Raises ValueError for fewer than two datasets, missing or repeated evaluations, unreadable or
    NaN predictions, and evaluations of one dataset on different images.
    """
    replicates, evaluations = of_role(evaluations, REPLICATE), of_role(evaluations, TEST)
    evaluated.check(evaluations, sets, downstreams or sets)
    held_out: dict[tuple[Arm, str, int], list[Path]] = {}  # for the pretrained model upstream
    for row in evaluations:
        if row.on_downstream or (not row.downstream and row.evaluated_on == upstream):
            held_out.setdefault((row.arm, row.downstream, row.seed), []).append(row.path)
    temperatures = {key: temperature_of(paths) for key, paths in held_out.items()}
    photos = {}
    for name, places in evaluated.by_set(evaluations).items():
        # A dataset that models were trained on may be evaluated on held-out images.
        whole = min(places, key=lambda k: evaluations[k].on_downstream)
        photos[name] = predictions.photos_of(evaluations[whole].path)
    related = related_datasets(photos, makers, downstreams)
    counts = related["set"].isin(sets) & related["related_to"].isin(downstreams or sets)
    related = related if counts.any() else related[:0]
    measured = evaluated.measured(evaluations, temperatures, draws)
    numbers, samples, answers = measured
    grid = grid_of(evaluations, numbers, samples, sets, upstream, downstreams or sets, answers)
    again = None
    if replicates:
        accuracy = evaluated.again(evaluations, replicates)
        arms, cells = dict(enumerate(grid.arms)), rows(grid.cells)
        keys = [ModelOnSet(*arms[c.arm], c.downstream, c.evaluated_on) for c in cells]
        again = np.array([accuracy.get(key, np.nan) for key in keys])
    return replace(grid, related=related, again=again)


def on_probe_sets(evaluations: Sequence[Evaluation], draws: int = DRAWS) -> pandas.DataFrame:
    """One row per arm and probe set, averaged over the downstream datasets: before_pct,
    accuracy_pct and change_pts, the last two with the bounds of their intervals."""
    downstreams = dict.fromkeys(row.downstream for row in evaluations if row.downstream)
    numbers, samples, _ = evaluated.measured(evaluations, {}, draws)
    grid = grid_of(evaluations, numbers, samples, (), "", tuple(downstreams))
    cells, by = grid.cells[grid.cells["method"] != PRE], ["arm", "evaluated_on"]
    before = grid.mean(cells, by, of="before")
    table = before.keys.assign(before_pct=before.values())
    table = table.merge(grid.mean(cells, by).table("accuracy_pct", clip=True), on=by)
    return grid.named(table.merge(grid.mean(cells, by, of="change").table("change_pts"), on=by))


def grid_of(
    evaluations: Sequence[Evaluation],
    numbers: Sequence[Mapping[str, float]],
    samples: Mapping[str, np.ndarray],
    sets: Sequence[str],
    upstream: str | None,
    downstreams: Sequence[str],
    answers: Mapping[str, Answers] = MappingProxyType({}),
) -> Grid:
    """The grid of evaluations from their numbers (images, sources, and the measures by name),
    draws, float32 [B, evaluations] by measure, and answers by dataset, which paired tests need."""
    arms = {arm: k for k, arm in enumerate(dict.fromkeys(row.arm for row in evaluations))}
    names = [*KEY, "seed", "headline", "trains", "on_downstream", "arm"]
    of_rows = [
        (*row.key, row.seed, row.headline, row.trains, row.on_downstream, arms[row.arm])
        for row in evaluations
    ]
    trained = _named(pandas.DataFrame(of_rows, columns=names))
    trained = trained.join(pandas.DataFrame(numbers)).assign(**{ROBUSTNESS: np.nan})
    cell = trained.groupby(["arm", "downstream", "evaluated_on"], sort=False).ngroup().to_numpy()
    order, size = np.lexsort((trained["seed"], cell)), np.bincount(cell)
    seeds = sorted(set(trained.loc[trained["method"] != PRE, "seed"])) or [0]
    # The pretrained model has no seed; its row is used for every seed.
    of_seed = np.arange(len(seeds)) % size[:, None] + (np.cumsum(size) - size)[:, None]
    by_seed = order[of_seed]
    cells = trained.iloc[by_seed[:, 0]].drop(columns="seed").reset_index(drop=True)
    for name in trained.columns.drop([*names, "images", "sources"], errors="ignore"):
        cells[name] = trained[name].to_numpy(float)[by_seed].mean(axis=1)
    keys = list(zip(cells["arm"], cells["downstream"], cells["evaluated_on"], strict=True))
    place, before = {key: k for k, key in enumerate(keys)}, [arms[arm.before] for arm in arms]
    # Of its column, if each column has a pretrained model.
    of_columns = [place.get((before[arm], column, name)) for arm, column, name in keys]
    cells = cells.assign(
        before=[
            place[before[arm], "", name] if of_column is None else of_column
            for (arm, _, name), of_column in zip(keys, of_columns, strict=True)
        ],
        on_upstream=[place.get((arm, trained_on, upstream), -1) for arm, trained_on, _ in keys],
    )
    draws = dict(samples)
    if len(seeds) > 1:
        for name, of_evaluations in samples.items():
            mean = sum(of_evaluations[:, places] for places in by_seed.T) / len(seeds)
            draws[name] = np.asfortranarray(mean)
    return Grid(
        tuple(sets),
        upstream,
        tuple(downstreams),
        tuple(seeds),
        tuple(arms),
        cells,
        draws,
        {name: trained[name].to_numpy(float)[by_seed.T] for name in draws},
        trained.iloc[order].reset_index(drop=True),
        answers={
            name: Answers(each.scores, cell[[*each.places]]) for name, each in answers.items()
        },
    )
