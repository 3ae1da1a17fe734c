"""RI, set by set."""

from __future__ import annotations

import pandas

from engine.measures.standings import Standings, counted
from engine.report import frames, specs, table
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

TOOLTIP = [
    specs.field("method"),
    specs.field("downstream", "fine-tuned on"),
    specs.field("RI", format="+.2f"),
    specs.field("RI_low", "95% from", "+.2f"),
    specs.field("RI_high", "to", "+.2f"),
]


def section(results: Results) -> Section | None:
    rows = [
        frames.of_line(model, line)
        | {"downstream": name, "RI": line.ri[name]}
        | frames.ends(results, "RI", "RI", line.arm, name)
        for model in results.models
        for line in model.lines
        for name in model.downstreams
    ]
    if not rows:
        return None
    data = pandas.DataFrame(rows)
    end = frames.scale_end(data["RI"])
    return Section(
        "improvements",
        "Robustness improvement, set by set",
        "RI in points: fine-tuned on the set that heads the column, evaluated on "
        f"{table.measured_on(results.models[0])}. "
        "Sets stand from the easiest to the hardest for the pre-trained model.",
        figures=[_figure(results, model, data, end) for model in results.models if model.lines],
        tables=[
            _before(results),
            *(_paper(results, model, data) for model in results.models if model.lines),
            Table(
                "robustness-improvement",
                "RI of every method and set fine-tuned on, with its 95% interval.",
                data,
                {"RI": "interval"},
            ),
        ],
    )


def _figure(results: Results, model: Standings, data: pandas.DataFrame, end: float) -> Figure:
    rows = frames.where(data, model=model.model)
    least, most = frames.extremes(rows, "RI")
    return Figure(
        frames.slug("improvements", model.model),
        f"RI{frames.label(results, model)}: blue is gain, orange loss.",
        f"RI of {len(model.lines)} methods, fine-tuned on "
        f"{counted('set', len(model.downstreams))}{frames.label(results, model)}: "
        f"from {least['RI']:+.1f} ({least['method']} on "
        f"{least['downstream']}) to {most['RI']:+.1f} ({most['method']} on {most['downstream']}).",
        rows.drop(columns=["model", "variant"]),
        specs.heat_map("downstream", "method", "RI", end, TOOLTIP, legend=True),
    )


def _paper(results: Results, model: Standings, data: pandas.DataFrame) -> Table:
    """A row a method, a column a set, as papers print it."""
    wide = frames.where(data, model=model.model).pivot_table(
        "RI", "method", "downstream", sort=False
    )
    wide = wide[[*model.downstreams]].assign(mRI=[line.mri.mri for line in model.lines])
    columns = list(map(str, wide.columns))
    return Table(
        frames.slug("paper", *[model.model] * (len(results.models) > 1)),
        f"RI in points by set fine-tuned on, and mRI{frames.label(results, model)}.",
        wide.reset_index().rename_axis(columns=None),
        dict.fromkeys(columns, "signed1"),
        columns,
    )


def _before(results: Results) -> Table:
    """The pre-trained models' accuracy, and the published one where it is known."""
    rows = []
    for model in results.models:
        published = frames.reference(model).get("before", {})
        for name, accuracy in frames.in_order(model, model.before).items():
            arm = model.lines[0].arm.before if model.lines else None
            row = {"model": model.model, "set": name, "accuracy": accuracy}
            if arm is not None:
                row |= frames.ends(results, "accuracy", "accuracy", arm, "", name)
            if name in published:
                row["published"] = published[name]
            rows.append(row)
    data = pandas.DataFrame(rows)
    formats = {"accuracy": "span", "published": "plain1"}
    return Table(
        "before",
        "Accuracy of the pre-trained model in percent, with its 95% interval.",
        data,
        {name: kind for name, kind in formats.items() if name in data},
    )
