"""The variants of a sweep: mRI against what varies, and which variant may be chosen.

mRI is measured on the sets that a choice must not see, so no variant is called best by it. Every
varied key is a column, with values of the key's type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas

from engine.measures.rows import PRE
from engine.measures.tables import ordered
from engine.report import charts
from engine.report.columns import between
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.sections import tuning
from engine.report.text import counted, signed, slug

SEED = "seed"
MOST_TICKS = 12
SELECTION = (
    "mRI is measured on the test sets. To pick the variant with the highest mRI is selection on "
    "the test sets, so this report calls none the best."
)
NO_HOLDOUT = (
    "Nothing is held out of the sets fine-tuned on, so no accuracy is left to choose a variant by; "
    "dataset.holdout=0.25 with evaluate.split=holdout keeps a quarter of each set apart."
)


def section(results: Results) -> Section | None:
    """None where the campaign is no sweep."""
    if results.record.sweep is None:
        return None
    data, chosen, keys = summary(results), choices(results), _keys(results)
    (title,) = results.record.methods.values()
    caption = (
        "Every variant, in the order of the sweep: mRI with its 95% interval and RI by set "
        "fine-tuned on, in points; mean accuracy on that set, in percent."
    )
    of_choice, tables = NO_HOLDOUT, [Table("sweep-variants", caption, data)]
    if not chosen.empty:
        of_choice = (
            "Chosen for each set by accuracy on the held-out images of the set fine-tuned on, "
            "which RI does not count, variants have a mean RI of "
            f"{signed(chosen['RI_pts'].mean())} points."
        )
        caption = (
            "By set fine-tuned on, the variant with the highest accuracy on that set's held-out "
            "images (of equal ones the first), and its RI in points."
        )
        tables.append(Table("sweep-choices", caption, chosen))
    seeds = len(results.grid.seeds)
    return Section(
        "sweep",
        f"mRI is from {signed(data['mRI_pts'].min())} to {signed(data['mRI_pts'].max())} points",
        f"{counted('variant', len(data))} of {title}"
        + (f", every combination of {', '.join(keys)}" if keys else "")
        + f", each fine-tuned on {counted('set', len(results.record.downstreams))}."
        + (f" Numbers are means over {seeds} seeds." if seeds > 1 else ""),
        [SELECTION, of_choice],
        [_figure(results, data, keys)] if keys else [],
        tables,
        is_open=True,
    )


def rows(results: Results) -> pandas.DataFrame:
    """A row a variant, seed, set fine-tuned on and set evaluated on: accuracy in percent before and
    after, and the change in points. `seed` is left out where there is a single one."""
    grid, sweep = results.grid, results.record.sweep or {}
    cells = grid.cells
    pre = cells[cells["method"] == PRE].set_index("evaluated_on")["accuracy"]
    trained = grid.trained[(grid.trained["method"] != PRE) & grid.trained["headline"]]
    trained = trained[trained["setting"].isin(sweep)]
    varied = pandas.DataFrame([sweep[setting] for setting in trained["setting"]])
    data = trained[[SEED] * (len(grid.seeds) > 1) + ["downstream", "evaluated_on"]]
    before = trained["evaluated_on"].map(pre)
    data = data.assign(accuracy_before=before, accuracy_after=trained["accuracy"])
    data["change"] = data["accuracy_after"] - before
    return pandas.concat([varied, data.reset_index(drop=True)], axis=1)


def _variants(results: Results) -> tuple[list[str], pandas.DataFrame]:
    """The varied keys and the seed; and the arms of the sweep in its order, with their values."""
    sweep = results.record.sweep or {}
    values = pandas.DataFrame([*sweep.values()])
    arms = results.shown.set_index("setting").loc[[*sweep]]
    return list(map(str, values)), pandas.concat([values, arms.reset_index(drop=True)], axis=1)


def summary(results: Results) -> pandas.DataFrame:
    """A row a variant, in the order of the sweep: mRI with its interval, RI by set fine-tuned on,
    in points, and mean accuracy in percent on the set fine-tuned on, where that is evaluated."""
    keys, table = _variants(results)
    wide = results.ri.pivot_table("RI_pts", "arm", "downstream", sort=False)
    wide = wide[results.downstreams(results.models[0])].add_prefix("RI ").add_suffix("_pts")
    numbers = ["mRI_pts", "mRI_low", "mRI_high", *wide.columns, "on_downstream_set_pct"]
    table = table.join(wide, on="arm")
    return table[keys + [name for name in numbers if name in table]]


def choices(results: Results) -> pandas.DataFrame:
    """By set fine-tuned on, the variant with the highest accuracy on its held-out images (of equal
    ones the first), and that variant's RI. Without rows where nothing is held out."""
    if not results.record.holdout:
        return pandas.DataFrame()
    keys, variants = _variants(results)
    order = {"downstream": results.downstreams(results.models[0]), "arm": variants["arm"]}
    judged = ordered(tuning.held_out(results), **order).reset_index(drop=True)
    chosen = tuning.choices(judged, ["downstream"]).merge(variants[["arm", *keys]], on="arm")
    return chosen[["downstream", *keys, tuning.HELD_OUT, "RI_pts"]]


def _keys(results: Results) -> list[str]:
    """The varied keys with several values; a seed is none."""
    settings = list((results.record.sweep or {}).values())
    return [key for key in settings[0] if len({values[key] for values in settings}) > 1]


def _figure(results: Results, summary: pandas.DataFrame, keys: Sequence[str]) -> Figure:
    """mRI against the first numeric key, a colour for the values of the others; of words, bars."""
    x = next((key for key in keys if _is_numeric(key, summary[key])), "")
    rest, rows = [key for key in keys if key != x], summary.to_dict("records")
    data = summary[["mRI_pts", "mRI_low", "mRI_high"]]
    data = data.assign(method=[_words(row, keys) for row in rows])
    spec = charts.bars(data, "mRI_pts")
    if x:
        (title,) = results.record.methods.values()
        data = data.assign(x=summary[x], line=[_words(row, rest) or title for row in rows])
        values = sorted(set(data["x"]))
        ticks = {value: f"{value:g}" for value in values} if len(values) <= MOST_TICKS else {}
        log = values[0] > 0 and values[-1] / values[0] > 10 * (1 + 1e-9)
        spec = charts.curve(data, "x", "mRI_pts", "line", x_title=x, ticks=ticks, log=log)
    return Figure(
        slug("sweep", results.models[0]),
        f"mRI of each variant in points{f' against {x}' * bool(x)}, with its 95% interval"
        + (f"; a colour for each {', '.join(rest)}" if x and rest else "")
        + ". It is measured on the test sets, by which no variant may be chosen.",
        f"mRI by {', '.join(keys)}: from {between(data, 'mRI_pts', 'method')}.",
        data,
        spec,
    )


def _is_numeric(key: str, values: pandas.Series) -> bool:
    """Whether values lie on an axis of numbers; 0 shots are all images, and so no number."""
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return plain and all(math.isfinite(v) and (v or key != "dataset.shots") for v in values)


def _words(row: dict[Any, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in keys)
