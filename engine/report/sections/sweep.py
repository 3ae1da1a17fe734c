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
from engine.measures.tables import extremes
from engine.report import charts
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
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
    data, chosen = summary(results), choices(results)
    keys = _keys(results)
    (title,) = results.record.methods.values()
    seeds = len(results.grid.seeds)
    of_choice = NO_HOLDOUT
    judged = "on_downstream_set_pct" in data
    tables = [
        Table(
            "sweep-variants",
            "Every variant, in the order of the sweep: mRI with its 95% interval and RI by set "
            "fine-tuned on, in points"
            + ("; mean accuracy on the set fine-tuned on, in percent." if judged else "."),
            data,
        )
    ]
    if not chosen.empty:
        of_choice = (
            "Chosen for each set by accuracy on the held-out images of the set fine-tuned on, "
            "which RI does not count, variants have a mean RI of "
            f"{signed(chosen['RI_pts'].mean())} points."
        )
        tables.append(
            Table(
                "sweep-choices",
                "By set fine-tuned on, the variant with the highest accuracy on that set's "
                "held-out images (of equal ones the first), and its RI in points.",
                chosen,
            )
        )
    return Section(
        "sweep",
        "The variants of the sweep",
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


def _variants(results: Results) -> pandas.DataFrame:
    """The arms of the sweep in its order, with the values of the varied keys beside the seed."""
    sweep = results.record.sweep or {}
    arms = results.shown.set_index("setting").loc[[*sweep]]
    return pandas.concat([pandas.DataFrame([*sweep.values()]), arms.reset_index(drop=True)], axis=1)


def summary(results: Results) -> pandas.DataFrame:
    """A row a variant, in the order of the sweep: mRI with its interval, RI by set fine-tuned on,
    in points, and mean accuracy in percent on the set fine-tuned on, where that is evaluated."""
    table, keys = _variants(results), [*next(iter((results.record.sweep or {}).values()))]
    wide = results.ri.pivot_table("RI_pts", "arm", "downstream", sort=False)
    wide = wide[results.downstreams(results.models[0])]
    wide.columns = [f"RI {name}_pts" for name in wide.columns]
    numbers = ["mRI_pts", "mRI_low", "mRI_high", *wide.columns, "on_downstream_set_pct"]
    table = table.join(wide, on="arm")
    return table[keys + [name for name in numbers if name in table]]


def choices(results: Results) -> pandas.DataFrame:
    """By set fine-tuned on, the variant with the highest accuracy on its held-out images (of equal
    ones the first), and that variant's RI. Without rows where nothing is held out."""
    variants, cells = _variants(results), results.cells
    keys = [*next(iter((results.record.sweep or {}).values()))]
    data = []
    for name in results.downstreams(results.models[0]) if results.record.holdout else ():
        here = cells[(cells["downstream"] == name) & (cells["evaluated_on"] == name)]
        judged = here.set_index("arm")["accuracy"].reindex(variants["arm"]).dropna()
        if judged.empty:
            continue
        best: Any = judged.idxmax()
        row = variants[variants["arm"] == best].iloc[0]
        ri = results.ri[(results.ri["arm"] == best) & (results.ri["downstream"] == name)]
        numbers = {"held_out_accuracy_pct": judged[best], "RI_pts": ri["RI_pts"].iloc[0]}
        data.append({"downstream": name, **{key: row[key] for key in keys}, **numbers})
    return pandas.DataFrame(data)


def _keys(results: Results) -> list[str]:
    """The varied keys with several values; a seed is none."""
    settings = list((results.record.sweep or {}).values())
    return [key for key in settings[0] if len({values[key] for values in settings}) > 1]


def _figure(results: Results, summary: pandas.DataFrame, keys: Sequence[str]) -> Figure:
    """mRI against the first numeric key, a colour for each value of the next."""
    x = next((key for key in keys if _is_numeric(key, summary[key])), keys[0])
    rest = [key for key in keys if key != x]
    color, *more = rest or [""]
    rows = summary.to_dict("records")
    numeric = _is_numeric(x, summary[x])
    columns: dict[str, Any] = {
        "variant": [_words(row, keys) for row in rows],
        "x": summary[x] if numeric else summary[x].astype(str),
        **({"color": summary[color]} if color else {}),
        "line": [_words(row, rest) for row in rows],
        **{name: summary[name] for name in ("mRI_pts", "mRI_low", "mRI_high")},
    }
    data = pandas.DataFrame(columns)
    low, high = extremes(data, "mRI_pts")
    values = sorted(set(data["x"])) if numeric else []
    is_log = bool(values) and values[0] > 0 and values[-1] / values[0] > 10 * (1 + 1e-9)
    ticks = {value: f"{value:g}" for value in values} if len(values) <= MOST_TICKS else {}
    return Figure(
        slug("sweep", results.models[0]),
        f"mRI of each variant in points against {x}, with its 95% interval"
        + (f"; a colour for each {color}" if color else "")
        + (f"; a line for each {', '.join(more)}" if more else "")
        + ". It is measured on the test sets, by which no variant may be chosen.",
        f"mRI by {', '.join(keys)}: from {signed(low['mRI_pts'])} ({low['variant']}) to "
        f"{signed(high['mRI_pts'])} ({high['variant']}).",
        data,
        charts.curve(
            data,
            "x",
            "mRI_pts",
            "color" if color else "",
            x_title=x,
            ticks=ticks,
            log=is_log,
            detail="line",
        ),
    )


def _is_numeric(key: str, values: pandas.Series) -> bool:
    """Whether values lie on an axis of numbers; 0 shots are all images, and so no number."""
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return plain and all(math.isfinite(v) and (v or key != "dataset.shots") for v in values)


def _words(row: dict[Any, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in keys)
