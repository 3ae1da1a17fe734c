"""The report's tables in the terminal: what `make demo` ends with, readable without opening
anything."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas

from engine.measures import tables
from engine.measures.comparisons import SIGNIFICANT
from engine.measures.metrics import ROBUSTNESS, Means, measures
from engine.measures.rows import PRE, Arm
from engine.report import console
from engine.report.headline import averaged_over, measured_on
from engine.report.results import Results
from engine.report.text import ABSENT, ascii_signed, counted, p_value, rounded, set_head


def table(results: Results, notes: Sequence[str] = ()) -> str:
    """By model, RI per downstream set and mRI with its interval, a method a row; `notes` are
    printed below."""
    below = [textwrap.fill(f"note: {note}", console.WIDTH) for note in notes]
    return "\n\n".join([*(_ri(results, model, "") for model in results.models), *below])


def intervals(results: Results, model: str) -> str:
    """RI of every method and set with half the width of its interval."""
    return _ri(
        results,
        model,
        "RI and mRI in points; below each, half the width of its 95% interval, whose ends are in "
        f"intervals.csv. It is about {results.population}.",
    )


def comparisons(results: Results, model: str, against: str | None = None) -> str:
    """Every method against one of them, or the best: paired difference in mRI, its corrected p, and
    the number of sets on which a corrected p proves its mean accuracy higher and lower. p is
    corrected for every two methods, whichever is compared with.
    """
    ranked, sets = results.ranked(model), results.grid.sets
    wanted = ranked[ranked["key"] == against] if against else ranked
    if wanted.empty:
        return f"{model}\nThere is no finished method to compare with."
    reference = wanted.iloc[0]
    overall = results.against(reference["arm"])
    on_sets = pandas.concat([results.against(reference["arm"], name) for name in sets])
    proven = on_sets.loc[on_sets["p_corrected"] < SIGNIFICANT, "difference_pts"]
    rows = []
    for _, line in ranked[ranked["arm"].isin(overall.index)].iterrows():
        test, on_set = overall.loc[line["arm"]], proven[proven.index == line["arm"]]
        rows.append(
            [
                line["method"],
                ascii_signed(line["mRI_pts"]),
                ascii_signed(test["difference_pts"]),
                _span(test["difference_low"], test["difference_high"]),
                p_value(test["p"]),
                p_value(test["p_corrected"]),
                str((on_set > 0).sum()),
                str((on_set < 0).sum()),
            ]
        )
    return console.text(
        f"{model}\nAgainst {reference['method']} (mRI {ascii_signed(reference['mRI_pts'])}), "
        "paired over the same images. Differences in mRI, in points; p by the paired bootstrap, "
        f"corrected (Holm) for {counted('comparison', results.family)}. Better and worse: on how "
        f"many of the {len(sets)} sets, by the same test, corrected for "
        f"{results.family * len(sets)}. It is about {results.population}.",
        ["", "mRI", "difference", "95% interval", "p", "corrected p", "better on", "worse on"],
        rows,
    )


def behaviour(results: Results, model: str) -> str:
    """What fine-tuning did to the predictions, a mean over all pairs of sets."""
    grid, cells = results.grid, results.grid.cells
    of_model = cells[(cells["model"] == model) & cells["evaluated_on"].isin(grid.sets)]
    elsewhere = of_model[of_model["downstream"] != of_model["evaluated_on"]]
    means = grid.mean(elsewhere, ["arm"])
    place = {arm: k for k, arm in enumerate(means.keys["arm"])}
    names = [name for name in measures() if of_model[name].notna().any()]
    columns = [_value_and_half(means, name) for name in names]

    def rows(title: str, arm: int) -> list[list[str]]:
        values, halves = zip(*(column[place[arm]] for column in columns), strict=True)
        return [[title, *values], ["", *halves]]

    pre = grid.arms.index(Arm(model, PRE, "", None))
    shown = results.shown[results.shown["model"] == model]
    return console.text(
        f"{model}\nMeans over every set fine-tuned on and every other set. Percent of "
        "images with the same top-1 class before and after, right both times, lost and gained; "
        "expected calibration error (debiased), that after temperature scaling and the class-wise "
        "one where they are stored, mean accuracy over classes and that on the worst (these five "
        "have no interval), and accuracy above the trend line of models that nothing made robust, "
        "in points. Below each, half the width of its 95% "
        f"interval, whose ends are in intervals.csv. It is about {results.population}.",
        ["", *(name.replace("_", " ").replace("top1", "top-1") for name in names)],
        rows("pre-trained", pre),
        [row for line in tables.rows(shown) for row in rows(line.method, line.arm)],
    )


def _value_and_half(means: Means, name: str) -> list[tuple[str, str]]:
    values = means.values(name)
    table = means.table("x", name).set_index("arm").reindex(means.keys["arm"])
    write = ascii_signed if name == ROBUSTNESS else rounded
    return [
        (ABSENT if np.isnan(value) else write(value), _half(low, high))
        for value, low, high in zip(values, table["x_low"], table["x_high"], strict=True)
    ]


def _ri(results: Results, model: str, about: str) -> str:
    """A model's table of RI; with a text `about` them, of half the widths of intervals too."""
    names, before = results.downstreams(model), results.before(model)
    of_model = results.ri[results.ri["model"] == model].set_index(["arm", "downstream"])
    cells = results.grid.mean(results.grid.cells, ["arm", "evaluated_on"])
    pre = results.grid.arms.index(Arm(model, PRE, "", None))
    half = {
        row.evaluated_on: _half(row.x_low, row.x_high)
        for row in tables.rows(cells.table("x"))
        if row.arm == pre
    }
    known = [rounded(before[name]) if name in before else ABSENT for name in names]
    first, blank = [["pre-trained %", *known, ""]], [] if about else [""]
    first[0] += blank
    if about:
        first.append(["", *(half.get(name, "") for name in names), ""])
    rows = []
    for _, line in results.shown[results.shown["model"] == model].iterrows():
        of_arm = of_model.loc[line["arm"]].reindex(names)
        cells_of_row = [*map(ascii_signed, of_arm["RI_pts"]), ascii_signed(line["mRI_pts"])]
        ends = line["mRI_low"], line["mRI_high"]
        rows.append([line["method"], *cells_of_row, *([] if about else [_span(*ends)])])
        if about:
            halves = map(_half, of_arm["RI_low"], of_arm["RI_high"])
            rows.append(["", *halves, _half(*ends)])
    title = about or (
        f"RI: mean change in accuracy on {measured_on(results)}, in points, after fine-tuning on "
        f"the set that heads the column; mRI: its mean over {averaged_over(results)}."
    )
    heads = ["", *map(set_head, names), "mRI", *([] if about else ["95% interval"])]
    return console.text(f"{model}\n{title}", heads, first, rows)


def _half(low: float, high: float) -> str:
    """Half of an interval's width, where it is known."""
    return f"±{rounded((high - low) / 2)}" if low == low else ""


def _span(low: float, high: float) -> str:
    return f"[{ascii_signed(low)}, {ascii_signed(high)}]"
