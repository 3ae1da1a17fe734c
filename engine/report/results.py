"""The results of finished campaigns' stored predictions, as tables for reports. No torch."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import comb, isnan, nan
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import pandas

from engine.campaigns.record import FinishedCampaign, Record
from engine.measures import comparisons, effective_robustness, metrics, model_rows
from engine.measures.bootstrap import SIGNIFICANT
from engine.measures.comparisons import alike_groups
from engine.measures.effective_robustness import (
    GIVEN,
    MODELS_FOR_A_TREND,
    PUBLISHED,
    Baseline,
    Trend,
)
from engine.measures.groups import HALVES, accuracy_by_group, accuracy_by_half
from engine.measures.metrics import CELL, Grid
from engine.measures.rows import (
    DEFAULT_ALPHA,
    PRE,
    PROBE,
    TEST,
    Arm,
    Evaluation,
    Setting,
    of_role,
    trained_sets,
)
from engine.measures.tables import groups, ordered, with_ends
from engine.recipe import extras
from engine.recipe.catalogue import TIMM_MODELS
from engine.report.published import Published, read_published
from engine.report.text import counted, listed, set_head

FINE_TUNE = "fine_tune"


@dataclass(frozen=True, eq=False)
class Results:
    """The content of a report. record: of one campaign, or several combined (`merged`). trends: by
    dataset, the baseline of effective robustness.

    arms: one row per arm, by model in table order, including interpolations at every alpha. arm:
    its index in the grid's arms. method: its title; key: the method's name. shown: whether tables
    show it. Numbers in percent and points with the bounds of their intervals: mRI_pts;
    downstream_accuracy_pct, mean accuracy on the downstream datasets (of a union, the mean over
    its datasets), missing if one is not evaluated; OOD_accuracy_pct; change_upstream_pts, mean
    change on the upstream dataset after fine-tuning on others, missing if it was not evaluated.

    comparisons: of all pairs of arms that tables show (`comparisons.compare`). published: numbers
    to compare with. groups: `accuracy_by_group`, of datasets with further columns. probe_sets:
    `metrics.on_probe_sets`, if there are any. halves: `accuracy_by_half`, if held-out images choose
    among settings. evaluations: of all roles, with absolute paths. extras: those whose tables and
    sections the report has, by name.
    """

    record: Record
    grid: Grid
    arms: pandas.DataFrame
    comparisons: pandas.DataFrame
    trends: Mapping[str, Trend]
    published: Published
    groups: pandas.DataFrame = field(default_factory=lambda: pandas.DataFrame(columns=CELL))
    probe_sets: pandas.DataFrame = field(default_factory=pandas.DataFrame)
    halves: pandas.DataFrame = field(
        default_factory=lambda: pandas.DataFrame(columns=["arm", "downstream", *HALVES])
    )
    evaluations: Sequence[Evaluation] = ()
    extras: Mapping[str, ModuleType] = field(default_factory=extras.modules)

    def hooks(self, name: str) -> list[Callable[[Results], Any]]:
        """The functions of this name (`engine.extras.base`) of the extras in use: one that adds
        rows to the record is in use if the record has them."""
        in_use = (
            extra
            for key, extra in self.extras.items()
            if key in self.record.extras or not hasattr(extra, "on_set")
        )
        return [getattr(extra, name) for extra in in_use if hasattr(extra, name)]

    @property
    def models(self) -> list[str]:
        """The pretrained models, in the order of their evaluations."""
        return [arm.model for arm in self.grid.arms if arm.method == PRE]

    @property
    def shown(self) -> pandas.DataFrame:
        """The arms that tables show, in their order."""
        return self.arms[self.arms["shown"]]

    def ranked(self, model: str | None = None) -> pandas.DataFrame:
        """The arms that tables show, best mRI first within each model; of all models, or one."""
        rows = self.shown.sort_values("mRI_pts", ascending=False, kind="stable")
        rows = ordered(rows, model=self.models)
        return rows[(rows["model"] == model) | (model is None)]

    def setting(self, arm: int) -> Setting:
        """The setting of an arm, by its place in the grid's arms."""
        return self.grid.arms[arm].setting

    def with_keys(self, table: pandas.DataFrame) -> pandas.DataFrame:
        """The table with methods named as in the report's CSV files and in recipes: in place of a
        title, method (its key), and variant, alpha and setting unless all rows lack them. Titles in
        the column against become against_method and so on; a curve is of all alphas of a method."""
        if "curve" in table:
            curves = [self._by_title.get(text) for text in table["curve"]]
            table = table.assign(curve=[arm.method if arm else "" for arm in curves])
        for name, prefix in (("method", ""), ("against", "against_")):
            if name not in table:
                continue
            arms = [self._by_title.get(text, Arm("", text, "", None)) for text in table[name]]
            table = table.rename(columns={name: f"{prefix}method"})
            table = table.assign(**{f"{prefix}method": [arm.method for arm in arms]})
            place = list(table).index(f"{prefix}method") + 1
            keys = pandas.DataFrame(arms, columns=Arm._fields)[["variant", "alpha", "setting"]]
            keys = keys.assign(alpha=keys["alpha"].astype(float), setting=keys["setting"].map(str))
            for key, values in keys.add_prefix(prefix).items():
                if key in table:
                    place = list(table).index(key) + 1
                elif (values.notna() & (values != "")).any():
                    table.insert(place, str(key), values.to_numpy())
                    place += 1
        return table

    @functools.cached_property
    def _by_title(self) -> dict[str, Arm]:
        """The arms by their titles in tables, with and without each key of their setting."""
        methods = self.record.methods
        arms = {text: Arm("", key, "", None) for key, text in methods.items()}
        shown = [self.grid.arms[arm] for arm in self.shown["arm"]]
        parts = (
            arm._replace(setting=arm.setting.without(key)) for arm in shown for key in arm.setting
        )
        arms |= {title(part, methods): part for part in parts}
        return arms | dict(zip(self.shown["method"], shown, strict=True))

    def before(self, model: str) -> dict[str, float]:
        """A pretrained model's accuracy in percent by dataset: those of RI from the easiest to the
        hardest, then the others."""
        cells = self.grid.cells
        cells = cells[(cells["model"] == model) & (cells["method"] == PRE)]
        # A mean, over the columns that do not train on a dataset if each column has such a model.
        others = ~cells["on_downstream"]
        known = _mean_by(cells[~others], "evaluated_on", "accuracy")
        known |= _mean_by(cells[others], "evaluated_on", "accuracy")
        first = sorted(self.grid.sets, key=lambda name: -known[name])
        return {name: known[name] for name in first} | known

    def downstreams(self, model: str) -> list[str]:
        """The downstream datasets in the same order; those that are not evaluated come last."""
        known = {name: self.before_on(model, name) for name in self.grid.downstreams}
        return sorted(known, key=lambda name: -(known[name] or 0.0))

    def before_on(self, model: str, downstream: str) -> float | None:
        """A pretrained model's accuracy in percent on a downstream dataset, or its mean over those
        of a union; None if one is not evaluated."""
        cells = self.grid.cells
        cells = cells[(cells["model"] == model) & (cells["method"] == PRE)]
        cells = cells[cells["downstream"].isin(["", downstream])].set_index("evaluated_on")
        before, names = cells["accuracy"].to_dict(), trained_sets(downstream)
        return fmean(before[name] for name in names) if before.keys() >= {*names} else None

    def before_elsewhere(self, model: str) -> dict[str, float]:
        """The mean accuracy in percent before fine-tuning over the datasets of a column's RI, by
        downstream dataset."""
        rows = self.grid.numbers.query("evaluated_on == '' and downstream != ''")
        rows = rows[[self.grid.arms[arm].model == model for arm in rows["arm"]]]
        return _mean_by(rows, "downstream", "before_pct")

    def pretrained_rows(self, model: str) -> dict[str, list[float | None]]:
        """By title, the pretrained model's accuracy in percent for each of `downstreams`: on the
        dataset, and where unions are trained on, on the datasets of its RI. A union of all datasets
        but one has the accuracy on that one."""
        names, elsewhere = self.downstreams(model), self.before_elsewhere(model)
        others: list[float | None] = [elsewhere[name] for name in names]
        if all(self.left_out(name) for name in names):
            return {"pretrained %, left out": others}
        titled = {"pretrained %": [self.before_on(model, name) for name in names]}
        if any(len(trained_sets(name)) > 1 for name in names):
            titled["pretrained %, others"] = others
        return titled

    def head(self, downstream: str) -> str:
        """A downstream dataset as a column head; `all but A` for all datasets of RI but A."""
        left_out = self.left_out(downstream)
        return f"all but {set_head(left_out)}" if left_out else set_head(downstream)

    def left_out(self, downstream: str) -> str:
        """The only dataset of RI that a union does not train on; empty if there are several."""
        sets, trained = self.grid.sets, {*trained_sets(downstream)}
        left_out = [name for name in sets if name not in trained]
        return left_out[0] if len(left_out) == 1 and 1 < len(trained) == len(sets) - 1 else ""

    @property
    def is_square(self) -> bool:
        """Whether RI is measured on the downstream datasets."""
        return set(self.grid.sets) == set(self.grid.downstreams)

    @functools.cached_property
    def cells(self) -> pandas.DataFrame:
        """The cells of the arms that tables show, in their order: the grid's columns with `method`
        as its title, and those of `Grid.numbers`."""
        titles = self.shown.set_index("arm")["method"]
        cells = self.grid.cells.join(self.grid.numbers.set_index(CELL), on=CELL)
        cells = cells[cells["arm"].isin(titles.index)]
        return ordered(cells.assign(method=cells["arm"].map(titles)), arm=titles.index)

    @functools.cached_property
    def ri(self) -> pandas.DataFrame:
        """RI_pts and its bounds, one row per shown arm and downstream dataset, in table order."""
        shown = self.shown[["arm", "model", "method", "variant"]]
        means = self.grid.numbers.query("evaluated_on == '' and downstream != ''")
        table = shown.merge(_part(means, "change_pts", "RI_pts", ["arm", "downstream"]), on="arm")
        parts = [
            ordered(rows, arm=shown["arm"], downstream=self.downstreams(model))
            for model, rows in groups(table, "model")
        ]
        return pandas.concat(parts or [table], ignore_index=True)

    @functools.cached_property
    def disjoint(self) -> pandas.DataFrame:
        """mRI and disjoint mRI of the shown arms: disjoint_mRI_pts, difference_pts (disjoint minus
        plain mRI, paired) and the bounds of both; columns: number of downstream datasets. Empty if
        no datasets are related, or all are. The difference ignores the seed replicate, whose column
        may have no related dataset."""
        disjoint, mri = self.grid.disjoint_mri, self.grid.mri
        place = {arm: k for k, arm in enumerate(mri.keys["arm"])}
        weights = mri.weights[:, [place[arm] for arm in disjoint.keys["arm"]]]
        grid = replace(self.grid, again=None)
        apart = replace(disjoint, grid=grid, weights=disjoint.weights - weights)
        apart = apart.table("difference_pts")
        table = disjoint.table("disjoint_mRI_pts").merge(apart, on=["arm", "columns"])
        if self.grid.related.empty:
            table = table[:0]
        return self.shown.merge(table, on="arm")

    def against(self, arm: int, on: str = "") -> pandas.DataFrame:
        """Each arm's comparison with this one: in mRI, or on a dataset."""
        rows = self.comparisons[self.comparisons["evaluated_on"] == on]
        swapped = rows.rename(columns={"arm": "against", "against": "arm"})
        swapped = swapped.assign(
            difference_pts=-rows["difference_pts"],
            difference_low=-rows["difference_high"],
            difference_high=-rows["difference_low"],
        )
        both = pandas.concat([rows, swapped])
        return both[both["against"] == arm].set_index("arm").drop(columns="against")

    def letters(self, model: str) -> dict[int, str]:
        """By arm of `ranked`, letters such as `ab`: arms that share one do not differ significantly
        in mRI. Empty if not all pairs are compared, or letters do not suffice."""
        arms = self.ranked(model)["arm"].tolist()
        pairs = self.comparisons.query("evaluated_on == '' and arm in @arms and against in @arms")
        if len(arms) < 2 or len(pairs) < comb(len(arms), 2):
            return {}
        differing = pairs[pairs["adjusted_p"] < SIGNIFICANT][["arm", "against"]]
        groups = alike_groups(arms, differing.itertuples(index=False, name=None))
        if len(groups) > len(string.ascii_lowercase):
            return {}
        named = [*zip(string.ascii_lowercase, groups, strict=False)]
        return {arm: "".join(name for name, group in named if arm in group) for arm in arms}

    @property
    def family(self) -> int:
        """The number of comparisons for which p of mRI is adjusted."""
        return int((self.comparisons["evaluated_on"] == "").sum())

    @property
    def covers_training(self) -> bool:
        """Whether intervals and tests of mRI cover training seeds, by several seeds or a seed
        replicate."""
        return len(self.grid.seeds) > 1 or self.grid.again is not None

    @property
    def one_training(self) -> str:
        """` (one training)`, after a ranking that other seeds may change; otherwise empty."""
        return "" if self.covers_training else " (one training)"

    @property
    def in_one_training(self) -> str:
        """` in this one training`, after numbers that ignore a seed replicate; otherwise empty."""
        return " in this one training" if len(self.grid.seeds) == 1 else ""

    @property
    def seeds(self) -> str:
        """The number of training seeds, and whether there is a seed replicate."""
        replicate = " and a seed replicate" if self.replicated else ""
        return counted("training seed", len(self.grid.seeds)) + replicate

    @property
    def replicated(self) -> list[str]:
        """The downstream datasets whose columns were trained twice."""
        cells, again = self.grid.cells, self.grid.again
        return [] if again is None else [*cells.loc[~np.isnan(again), "downstream"].unique()]

    @property
    def population(self) -> str:
        """The population of the intervals; `population_of_mri` for mRI."""
        seeds = len(self.grid.seeds)
        runs = f"training runs like these {seeds}" if seeds > 1 else "this one training"
        return (
            f"source images like these (all copies of one are drawn together) and {runs}; datasets "
            "and the pretrained model are fixed"
        )

    @property
    def population_of_mri(self) -> str:
        """The population of intervals and tests of mRI."""
        if not self.replicated:
            return self.population
        twice = f"other training seeds, estimated from a second one on {listed(self.replicated)}"
        return self.population.replace("this one training", twice)

    @property
    def measured_on(self) -> str:
        """The datasets that RI averages over: `the 7 other datasets`, `the 8 datasets`, or `the
        dataset left out`."""
        if all(map(self.left_out, self.grid.downstreams)):
            return "the dataset left out"
        sets, columns = {*self.grid.sets}, [{*trained_sets(of)} for of in self.grid.downstreams]
        others = {len(sets - column) for column in columns}
        if len(others) == 1 and all(column <= sets for column in columns):
            return f"the {counted('other dataset', others.pop())}"
        own = " except the column's" if any(column & sets for column in columns) else ""
        return f"the {counted('dataset', len(sets))}{own}"

    @property
    def averaged_over(self) -> str:
        """The datasets that mRI averages over: `the 8 datasets`, or `7 downstream datasets` if RI
        also uses others."""
        count = len(self.grid.downstreams)
        if self.is_square:
            return f"the {counted('dataset', count)}"
        return counted("downstream dataset", count)

    def of(self, model: str) -> str:
        """` of MODEL` if a report has several models, for captions."""
        return f" of {model}" if len(self.models) > 1 else ""

    def is_published(self, row: Any) -> bool:
        """Whether published numbers of a row's method, if there are any, are of the same variant,
        alpha and setting, on whole datasets."""
        is_same = row.variant == "released" or row.key in self.published.alike_in_both_variants
        is_same &= row.setting == "" and (pandas.isna(row.alpha) or row.alpha == DEFAULT_ALPHA)
        return is_same and not self.record.holdout

    def published_mri(self, row: Any) -> float | None:
        """The published mRI of a row of `arms`; None if ours is not comparable: other datasets or
        columns, held-out images, or another variant, alpha or setting.

        From published accuracies, mRI is known over any of their datasets and columns; without
        them, only over all.
        """
        sets, numbers = self.grid.sets, self.published.of(row.model)
        if not self.is_published(row):
            return None
        columns = [(numbers.after(down, row.key), down) for down in self.grid.downstreams]
        of_columns = [
            [after.get(name, nan) - numbers.before.get(name, nan) for name in sets if name != down]
            for after, down in columns
        ]
        if not isnan(mri := fmean(map(fmean, of_columns))):
            return mri
        is_whole = self.is_square and {*self.published.sets} - {self.record.upstream} == {*sets}
        return numbers.mri.get(row.key) if is_whole else None


def of_campaign(run: FinishedCampaign, models_csv: Path | None = None) -> Results:
    """Results from the predictions of a finished campaign; models_csv: as in `of_record`."""
    return of_record(run.record, run.evaluations, models_csv)


def of_record(
    record: Record, evaluations: Sequence[Evaluation], models_csv: Path | None = None
) -> Results:
    """Results of a record's evaluations, with absolute paths. models_csv: the user's models for the
    baseline of effective robustness (`read_model_rows`), instead of published ones. Raises
    ValueError if no line can be fitted."""
    asked = record.sets, record.upstream, record.downstreams
    grid = metrics.gather(evaluations, *asked, makers=record.makers)
    results = of_grid(record, grid, _baseline(record, models_csv))
    tests, probes = of_role(evaluations, TEST), of_role(evaluations, PROBE)
    results = replace(results, evaluations=evaluations, groups=accuracy_by_group(grid, tests))
    if record.holdout and results.shown["setting"].any():
        halves = accuracy_by_half(tests, grid.arms)
        results = replace(results, halves=halves)
    return replace(results, probe_sets=metrics.on_probe_sets(probes)) if probes else results


def _baseline(record: Record, models_csv: Path | None) -> Baseline | None:
    """The models of the baseline: the user's, or published ones on these datasets."""
    sets, upstream = record.sets, record.upstream
    if upstream is None:
        if models_csv is not None:
            raise ValueError(
                f"{models_csv}: {record.name} has no upstream dataset for a trend line"
            )
        return None
    if models_csv is None:
        table = model_rows.published(TIMM_MODELS, sets, upstream)
        return None if table is None else Baseline(table, PUBLISHED)
    table = model_rows.read_model_rows(models_csv, sets, upstream)
    if table[sets].count().max() < MODELS_FOR_A_TREND:
        raise ValueError(
            f"{models_csv}: a trend line requires at least {MODELS_FOR_A_TREND} models with "
            "accuracy on the same dataset"
        )
    return Baseline(table, GIVEN)


def of_grid(record: Record, grid: Grid, baseline: Baseline | None = None) -> Results:
    """Results of a record's grid; baseline: as in `effective_robustness.trends`."""
    trends = effective_robustness.trends(grid, baseline)
    grid = effective_robustness.above_trend(grid, trends)
    arms = _arms(grid, record.methods)
    compared = comparisons.compare(grid, arms.loc[arms["shown"], "arm"].tolist())
    published = read_published(benchmark=record.benchmark)
    return Results(record, grid, arms, compared, trends, published)


def _arms(grid: Grid, methods: Mapping[str, str]) -> pandas.DataFrame:
    """As `Results.arms`; `methods` maps a method's key to its title, in table order. Other
    methods come last, titled by their key."""
    cells, numbers, by_arm = grid.cells, grid.numbers, grid.by_arm.dropna(subset="change_pts")
    upstream = numbers[numbers["evaluated_on"] == grid.upstream].query("downstream == ''")
    parts = [
        _part(by_arm, "change_pts", "mRI_pts"),
        _part(by_arm, "accuracy_pct", "OOD_accuracy_pct"),
    ]
    if len(forgotten := _part(upstream, "change_pts", "change_upstream_pts").dropna()):
        parts.append(forgotten)
    if set(cells["evaluated_on"]).issuperset(chain(*map(trained_sets, grid.downstreams))):
        counts = cells["downstream"].isin(grid.downstreams)
        on_downstream = cells[counts & cells["on_downstream"]]
        means = grid.mean(on_downstream, ["arm"])
        parts.insert(1, means.table("downstream_accuracy_pct", clip=True))
    table = functools.reduce(lambda a, b: a.merge(b, on="arm", how="left"), parts)
    table = table.merge(cells.drop_duplicates("arm")[["arm", "headline"]], on="arm")
    arms = [grid.arms[k] for k in table["arm"]]
    is_headline = table.pop("headline").astype(bool)
    named = grid.named(table).rename(columns={"method": "key"}).assign(arm=table["arm"])
    plain = named.loc[is_headline & (named["setting"] == ""), "model"]
    shown = is_headline & ((named["setting"] == "") | ~named["model"].isin(plain))
    titles = [
        title(arm, methods, is_shown=is_shown) for arm, is_shown in zip(arms, shown, strict=True)
    ]
    named = named.assign(method=titles, shown=shown)
    return ordered(
        named,
        model=[arm.model for arm in grid.arms if arm.method == PRE],
        key=[*methods, *named["key"]],
        variant=sorted(named["variant"]),
        setting=named["setting"],
        alpha=sorted(named["alpha"].dropna()),
    ).reset_index(drop=True)


def _mean_by(table: pandas.DataFrame, key: str, number: str) -> dict[str, float]:
    means = table.groupby(key, sort=False)[number].mean()
    return dict(zip(map(str, means.index), means, strict=True))


def _part(
    table: pandas.DataFrame, number: str, name: str, keys: Sequence[str] = ("arm",)
) -> pandas.DataFrame:
    """A number with its bounds, renamed."""
    return table[[*keys, *with_ends(number)]].set_axis([*keys, *with_ends(name)], axis=1)


def title(arm: Arm, methods: Mapping[str, str], *, is_shown: bool = True) -> str:
    """The method's title, with the arm's variant, setting and alpha unless it contains them. For
    shown interpolations, alpha is added only if it is not the default."""
    text = methods.get(arm.method, arm.method)
    if arm.variant not in ("original", "") and arm.variant not in text:
        text += f" ({arm.variant})"
    if arm.setting:
        text += f", {arm.setting.short}"
    alpha = f"alpha {arm.alpha:g}" if arm.alpha is not None else ""
    if alpha and is_shown and arm.alpha != DEFAULT_ALPHA and alpha not in text:
        text += f", {alpha}"
    return text
