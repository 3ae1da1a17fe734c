"""Tables for the terminal: of a report, as at the end of `make demo`, and of users' datasets."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import pandas

from engine.measures import tables
from engine.measures.bootstrap import SIGNIFICANT
from engine.report import console
from engine.report.results import Results, title
from engine.report.sections.groups import worst_groups
from engine.report.text import ABSENT, ascii_signed, counted, p_value, rounded, set_head
from loaders.files.names import one_line

if TYPE_CHECKING:
    from engine.evaluation.accuracies import OnSet


def table(results: Results, notes: Sequence[str] = ()) -> str:
    """One table per model with one row per method: RI per downstream dataset, and mRI with its
    interval; tables of datasets outside RI and of groups, if there are any; then the notes."""
    below = [textwrap.fill(f"note: {note}", console.WIDTH) for note in notes]
    of_models = (
        text
        for model in results.models
        for text in (_ri(results, model), *_further(results, model), *_groups(results, model))
    )
    return "\n\n".join([*of_models, *below])


def _ri(results: Results, model: str) -> str:
    """RI on each downstream dataset, mRI with its interval and, where datasets are related, mRI
    without them."""
    names, record = results.downstreams(model), results.record
    ri = results.ri.set_index(["arm", "downstream"])["RI_pts"]
    disjoint = results.disjoint.set_index("arm")["disjoint_mRI_pts"]
    head = ["", *map(results.head, names), "mRI", "95% interval"]
    title = (
        f"{model} on {record.benchmark}, version {record.version}\n"
        f"RI: mean change in accuracy on {results.measured_on}, in points, after "
        "fine-tuning on the dataset that heads the column; mRI: its mean over "
        f"{results.averaged_over}{results.one_training}"
    )
    rows = []
    for line in tables.rows(results.shown[results.shown["model"] == model]):
        of_sets = map(ascii_signed, ri.loc[line.arm].reindex(names))
        span = _span(line.mRI_low, line.mRI_high)
        rows.append([line.method, *of_sets, ascii_signed(line.mRI_pts), span])
        if len(disjoint):
            rows[-1].append(ascii_signed(disjoint.get(line.arm, math.nan)))
    if len(disjoint):
        head.append("disjoint")
        title += "; disjoint: mRI without related datasets"
    empty = [""] * (len(head) - 1 - len(names))
    pretrained = [
        [name, *(ABSENT if of is None else rounded(of) for of in numbers), *empty]
        for name, numbers in results.pretrained_rows(model).items()
    ]
    return console.text(f"{title}.", head, pretrained, rows)


def _further(results: Results, model: str) -> Iterator[str]:
    """A table of the datasets outside RI, if there are any."""
    names, before = results.record.evaluate_on, results.before(model)
    shown = results.shown[results.shown["model"] == model]
    numbers = results.grid.numbers.query("downstream == ''")
    change = numbers.set_index(["arm", "evaluated_on"])["change_pts"]
    if names:
        yield console.text(
            f"{model}: change in accuracy on datasets outside RI, in points; mean over models that "
            "were not fine-tuned on the dataset.",
            ["", *map(set_head, names)],
            [["pretrained %", *(rounded(before[name]) for name in names)]],
            [
                [line.method, *map(ascii_signed, change.loc[line.arm].reindex(names))]
                for line in tables.rows(shown)
            ],
        )


def _groups(results: Results, model: str) -> Iterator[str]:
    """A table of each dataset with further columns: accuracy, macro F1 and the worst groups."""
    if results.groups.empty:
        return
    table = worst_groups(results)
    for name, rows in tables.groups(table[table["model"] == model], "evaluated_on"):
        yield console.text(
            f"{model} on {name}: accuracy, macro F1 and each column's worst group, "
            "in percent; means over models that were not fine-tuned on the dataset.",
            ["", "accuracy", "macro F1", "column", "worst group", "its accuracy", "95% interval"],
            [
                [
                    line.method,
                    rounded(line.accuracy_pct),
                    rounded(line.macro_f1_pct),
                    one_line(line.column),
                    one_line(line.group),
                    rounded(line.value_pct),
                    f"[{rounded(line.value_low)}, {rounded(line.value_high)}]",
                ]
                for line in tables.rows(rows)
            ],
        )


def comparisons(results: Results, model: str, against: str | None = None) -> str:
    """Every method against one of them, or the best: paired difference in mRI, adjusted p, and the
    number of datasets on which its mean accuracy is significantly higher and lower. p is adjusted
    for all pairs of methods, whatever the reference.
    """
    ranked, sets = results.ranked(model).set_index("arm"), results.grid.sets
    wanted = ranked[ranked["key"] == against] if against else ranked
    if wanted.empty:
        return f"{model}\nNo finished method to compare with."
    reference = wanted.iloc[0]
    overall = results.against(wanted.index[0])
    on_sets = pandas.concat([results.against(wanted.index[0], name) for name in sets])
    proven = on_sets.loc[on_sets["adjusted_p"] < SIGNIFICANT, "difference_pts"]
    rows = [
        [
            line.method,
            ascii_signed(line.mRI_pts),
            ascii_signed(line.difference_pts),
            _span(line.difference_low, line.difference_high),
            p_value(line.p),
            p_value(line.adjusted_p),
            *(str((of[of.index == line.arm] > 0).sum()) for of in (proven, -proven)),
        ]
        for line in tables.rows(ranked.join(overall, how="inner").reset_index())
    ]
    return console.text(
        f"{model}\nAgainst {reference['method']} (mRI {ascii_signed(reference['mRI_pts'])}), "
        f"paired over the same images{results.one_training}. Differences in mRI, in points; p of "
        f"a paired t test over source images{' and seeds' * results.covers_training}, adjusted "
        f"(Holm) for {counted('comparison', results.family)}. Better and worse: the number of the "
        f"{len(sets)} datasets, by the same test, adjusted for {results.family * len(sets)}. "
        f"Intervals generalise to {results.population_of_mri}.",
        ["", "mRI", "difference", "95% interval", "p", "adjusted p", "better on", "worse on"],
        rows,
    )


def accuracies(rows: Sequence[OnSet]) -> str:
    """One line per dataset and model: accuracy in percent, with half the width of its interval."""
    name = "model" if rows[0].alpha is None else "alpha"
    lines = [
        list(map(_accuracy, of_set)) for _, of_set in groupby(rows, attrgetter("evaluated_on"))
    ]
    return console.text("", [name, "set", "images", "classes", "accuracy"], *lines)


def _accuracy(row: OnSet) -> list[str]:
    accuracy, low, high = rounded(row.accuracy_pct, 2), row.accuracy_low, row.accuracy_high
    name = row.model if row.alpha is None else f"{row.alpha:g}"
    if low is not None and high is not None:
        accuracy += f" ±{rounded((high - low) / 2, 2)}"
    return [name, row.evaluated_on, f"{row.images:,}", f"{row.classes:,}", accuracy]


def changes(rows: Sequence[OnSet], downstreams: Sequence[str], titles: Mapping[str, str]) -> str:
    """One table per dataset: accuracy in percent and its change in points, with the headline rows
    of the campaign and one column per downstream dataset. titles: of methods, by key."""
    tables = []
    for _, (before, *trained) in groupby(rows, attrgetter("evaluated_on")):
        cells = {(row.arm, row.downstream): row.accuracy_pct for row in trained if row.headline}
        after = pandas.Series(cells).unstack(sort=False)[[*downstreams]]
        after["mean"] = after.mean(axis=1)
        table = console.text(
            f"{before.model} on {before.evaluated_on}: {before.images:,} images\n"
            f"top-1 accuracy in percent among {before.classes:,} classes, after fine-tuning on the "
            "dataset that heads the column; below, the change from the pretrained model in points.",
            ["", *map(set_head, downstreams), "mean"],
            [["pretrained", *[""] * len(downstreams), rounded(before.accuracy_pct)]],
            [[title(arm, titles), *map(rounded, of)] for arm, *of in after.itertuples()],
            [
                [title(arm, titles), *map(ascii_signed, of)]
                for arm, *of in (after - before.accuracy_pct).itertuples()
            ],
        )
        tables.append(table)
    return "\n\n".join(tables)


def _span(low: float, high: float) -> str:
    return f"[{ascii_signed(low)}, {ascii_signed(high)}]"
