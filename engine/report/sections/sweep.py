"""The configurations of a sweep."""

from __future__ import annotations

import pandas

from engine.measures.rows import Setting
from engine.report import charts, tuning
from engine.report.results import Results
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import counted, signed


def section(results: Results) -> Section | None:
    """None if the campaign is not a sweep."""
    if results.record.sweep is None:
        return None
    keys, data = _configurations(results)
    varied = [key for key in keys if data[key].nunique() > 1]
    (title,) = results.record.methods.values()
    return Section(
        "sweep",
        f"mRI ranges from {signed(data['mRI_pts'].min())} to {signed(data['mRI_pts'].max())} "
        "points",
        f"{counted('configuration', len(data))} of {title} in {', '.join(keys) or 'its settings'}, "
        f"each fine-tuned on {counted('dataset', len(results.record.downstreams))}; means over "
        f"{counted('seed', len(results.grid.seeds))}. {tuning.SELECTION} Held-out images of the "
        "downstream datasets (dataset.holdout) may choose, because RI does not count them.",
        figures=by_model(
            results,
            "sweep",
            "mRI of each configuration in points, with 95% CIs",
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
                "sweep-configurations",
                "All configurations in the order of the sweep: mRI with 95% CIs and RI by "
                "downstream dataset, in points; mean downstream accuracy in percent.",
                data,
            )
        ],
        is_open=True,
    )


def _configurations(results: Results) -> tuple[list[str], pandas.DataFrame]:
    """The keys of the sweep, and one row per configuration in its order, with the keys'
    values: mRI with its interval and RI by downstream dataset, in points, and mean accuracy in
    percent on the downstream dataset, if evaluated."""
    sweep = results.record.sweep or []
    values = pandas.DataFrame(list(map(dict, sweep)))
    shown = results.shown
    arms = shown.set_index(shown["arm"].map(results.setting)).loc[sweep].reset_index(drop=True)
    wide = results.ri.pivot_table("RI_pts", "arm", "downstream", sort=False)
    wide = wide[results.downstreams(results.models[0])].add_prefix("RI ").add_suffix("_pts")
    numbers = ["mRI_pts", "mRI_low", "mRI_high", *wide, "on_downstream_dataset_pct"]
    table = arms.join(wide, on="arm")
    table = values.join(table[[name for name in numbers if name in table]])
    return list(map(str, values)), table
