"""The report's tables in the terminal: what `make demo` ends with, readable without opening
anything."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas

from engine.measures import tables
from engine.measures.comparisons import SIGNIFICANT
from engine.measures.metrics import ROBUSTNESS, measures
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
    ranked, sets = results.ranked(model).set_index("arm"), results.grid.sets
    wanted = ranked[ranked["key"] == against] if against else ranked
    if wanted.empty:
        return f"{model}\nThere is no finished method to compare with."
    reference = wanted.iloc[0]
    overall = results.against(wanted.index[0])
    on_sets = pandas.concat([results.against(wanted.index[0], name) for name in sets])
    proven = on_sets.loc[on_sets["p_corrected"] < SIGNIFICANT, "difference_pts"]
    rows = [
        [
            line.method,
            ascii_signed(line.mRI_pts),
            ascii_signed(line.difference_pts),
            _span(line.difference_low, line.difference_high),
            p_value(line.p),
            p_value(line.p_corrected),
            *(str((of[of.index == line.arm] > 0).sum()) for of in (proven, -proven)),
        ]
        for line in tables.rows(ranked.join(overall, how="inner").reset_index())
    ]
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
    means = grid.mean(of_model[of_model["downstream"] != of_model["evaluated_on"]], ["arm"])
    numbers = means.keys.set_index("arm")
    for name in measures():
        table = means.table(name, name).set_index("arm")
        numbers = numbers.join(table.rename(columns={f"{name}_low": "low", f"{name}_high": "high"}))
        write = ascii_signed if name == ROBUSTNESS else rounded
        numbers[name] = [ABSENT if x != x else write(x) for x in numbers[name]]
        numbers[f"±{name}"] = [*map(_half, numbers.pop("low"), numbers.pop("high"))]

    def rows(title: str, arm: int) -> list[list[str]]:
        of = numbers.loc[arm]
        return [[title, *map(str, of[measures()])], ["", *(str(of[f"±{n}"]) for n in measures())]]

    shown = results.shown[results.shown["model"] == model]
    return console.text(
        f"{model}\nMeans over every set fine-tuned on and every other set. Percent of "
        "images with the same top-1 class before and after, right both times, lost and gained; "
        "expected calibration error (debiased, without an interval), and accuracy above the trend "
        "line of models that nothing made robust, in points. Below each, half the width of its 95% "
        f"interval, whose ends are in intervals.csv. It is about {results.population}.",
        ["", *(name.replace("_", " ").replace("top1", "top-1") for name in measures())],
        rows("pre-trained", grid.arms.index(Arm(model, PRE, "", None))),
        [row for line in tables.rows(shown) for row in rows(line.method, line.arm)],
    )


def _ri(results: Results, model: str, about: str) -> str:
    """A model's table of RI; with a text `about` them, of half the widths of intervals too."""
    names, before = results.downstreams(model), results.before(model)
    ri = results.ri[results.ri["model"] == model].set_index(["arm", "downstream"])
    rows = []
    for line in tables.rows(results.shown[results.shown["model"] == model]):
        of_arm, ends = ri.loc[line.arm].reindex(names), (line.mRI_low, line.mRI_high)
        cells = [*map(ascii_signed, of_arm["RI_pts"]), ascii_signed(line.mRI_pts)]
        rows.append([line.method, *cells, *([] if about else [_span(*ends)])])
        if about:
            halves = map(_half, of_arm["RI_low"], of_arm["RI_high"])
            rows.append(["", *halves, _half(*ends)])
    blank = [""] * (1 if about else 2)
    known = [rounded(before[name]) if name in before else ABSENT for name in names]
    first = [["pre-trained %", *known, *blank]]
    if about:
        cells = results.grid.cells
        pre = cells[(cells["model"] == model) & (cells["method"] == PRE)]
        of_set = results.grid.mean(pre, ["evaluated_on"]).table("x").set_index("evaluated_on")
        of_set = of_set.reindex(names)
        first.append(["", *map(_half, of_set["x_low"], of_set["x_high"]), *blank])
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
