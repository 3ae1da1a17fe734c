"""Settings of training: the variants of a sweep, and the ones that held-out images choose."""

from __future__ import annotations

import pandas

from engine.measures.setting import Setting
from engine.report import charts, tuning
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import counted, signed


def variants(results: Results) -> Section | None:
    """None where the campaign is no sweep."""
    if results.record.sweep is None:
        return None
    keys, data = _variants(results)
    varied = [key for key in keys if data[key].nunique() > 1]
    (title,) = results.record.methods.values()
    return Section(
        "sweep",
        f"mRI is from {signed(data['mRI_pts'].min())} to {signed(data['mRI_pts'].max())} points",
        f"{counted('variant', len(data))} of {title} in {', '.join(keys) or 'its settings'}, each "
        f"fine-tuned on {counted('set', len(results.record.downstreams))}; means over "
        f"{counted('seed', len(results.grid.seeds))}. {tuning.SELECTION} Images that are held out "
        "of the sets fine-tuned on (dataset.holdout) may choose, since RI does not count them.",
        figures=by_model(
            results,
            "sweep",
            "mRI of each variant in points, with its 95% interval",
            data[["mRI_pts", "mRI_low", "mRI_high"]].assign(
                model=results.models[0],
                method=[
                    Setting({key: row[key] for key in varied}).short or title
                    for row in data.to_dict("records")
                ],
            ),
            ("mRI_pts", "method"),
            lambda rows: charts.bars(rows, "mRI_pts"),
        ),
        tables=[
            Table(
                "sweep-variants",
                "Every variant, in the order of the sweep: mRI with its 95% interval and RI by set "
                "fine-tuned on, in points; mean accuracy on that set, in percent.",
                data,
            )
        ],
        is_open=True,
    )


def _variants(results: Results) -> tuple[list[str], pandas.DataFrame]:
    """The keys of the sweep; and a row a variant, in its order, with the keys' values: mRI with its
    interval, RI by set fine-tuned on, in points, and mean accuracy in percent on the set fine-tuned
    on, where that is evaluated."""
    sweep = results.record.sweep or []
    values = pandas.DataFrame(list(map(dict, sweep)))
    shown = results.shown
    arms = shown.set_index(shown["arm"].map(results.setting)).loc[sweep].reset_index(drop=True)
    wide = results.ri.pivot_table("RI_pts", "arm", "downstream", sort=False)
    wide = wide[results.downstreams(results.models[0])].add_prefix("RI ").add_suffix("_pts")
    numbers = ["mRI_pts", "mRI_low", "mRI_high", *wide, "on_downstream_set_pct"]
    table = arms.join(wide, on="arm")
    table = values.join(table[[name for name in numbers if name in table]])
    return list(map(str, values)), table


def tuned(results: Results) -> Section | None:
    """None where nothing of training varies, or nothing is held out to choose on."""
    found = tuning.tuned(results)
    if found is None:
        return None
    chosen = found.choices
    return Section(
        "tuning",
        found.effect,
        "Every method was trained in the same number of settings. For each set fine-tuned on, its "
        "setting is the one with the highest accuracy on that set's held-out images; no set that "
        "RI counts is seen by the choice. The numbers have no intervals: these would have to draw "
        "the choice anew with the images. Elsewhere on this page each setting is a row: to pick "
        "one there is selection on the test sets.",
        tables=[
            Table(
                "tuning",
                "mRI of the chosen settings and of the recipe's, in points, and the gain; mean "
                "accuracy on held-out images of the sets fine-tuned on, in percent. That of the "
                f"chosen settings is the highest of {found.settings} on the images that chose, and "
                "so too high.",
                found.methods,
                ("mRI_tuned_pts", "mRI_plain_pts"),
            ),
            Table(
                "tuning-choices",
                "By method and set fine-tuned on: the chosen setting (of equal ones the first), "
                "its accuracy on held-out images in percent, which is too high since these chose "
                "it, and its RI in points.",
                chosen[[*tuning.CELL, "setting", tuning.HELD_OUT, "RI_pts"]],
            ),
        ],
    )
