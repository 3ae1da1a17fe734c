"""What fine-tuning forgets on the upstream set."""

from __future__ import annotations

import pandas

from engine.measures.standings import Standings
from engine.report import frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

CHANGE = specs.field("change_upstream", "mean change, points", "+.2f")
TOOLTIP = [
    specs.field("method"),
    CHANGE,
    specs.field("change_upstream_low", "95% from", "+.2f"),
    specs.field("change_upstream_high", "to", "+.2f"),
]
DOT = [
    specs.field("method"),
    specs.field("downstream", "fine-tuned on"),
    specs.field("change", "change, points", "+.2f"),
]


def section(results: Results) -> Section | None:
    models = [
        model for model in results.models if any(line.upstream is not None for line in model.lines)
    ]
    if not models:
        return None
    upstream = results.record.upstream
    data = {model.model: _rows(results, model, upstream) for model in models}
    before = ", ".join(
        f"{model.before[upstream]:.1f}%{frames.label(results, model)}" for model in models
    )
    table = pandas.concat(frames.where(rows, downstream="") for rows in data.values())
    return Section(
        "upstream-change",
        "What is forgotten upstream",
        f"Change in accuracy on {upstream}, in points, from {before} before. No part of RI.",
        figures=[_figure(results, model, data[model.model]) for model in models],
        tables=[
            Table(
                "upstream-change",
                f"Mean change on {upstream} in points, with its 95% interval.",
                table.drop(columns=["downstream", "change"]),
                {"change_upstream": "interval"},
            )
        ],
    )


def _rows(results: Results, model: Standings, upstream: str) -> pandas.DataFrame:
    """A row a method, without a set, and then one for each set fine-tuned on."""
    means, dots = [], []
    for line in model.lines:
        if line.upstream is None:
            continue
        row = frames.of_line(model, line) | {"downstream": "", "change_upstream": line.upstream}
        mean = frames.ends(results, "change_upstream", "change", line.arm, "", upstream)
        means.append(row | mean)
        for name in model.downstreams:
            if name == upstream:
                continue
            change = line.after[name][upstream] - model.before[upstream]
            dots.append(frames.of_line(model, line) | {"downstream": name, "change": change})
    return pandas.DataFrame([*means, *dots])


def _figure(results: Results, model: Standings, data: pandas.DataFrame) -> Figure:
    means = frames.where(data, downstream="")
    numbers = ", ".join(
        f"{method} {change:+.1f}"
        for method, change in zip(means["method"], means["change_upstream"], strict=True)
    )
    bars = specs.bars("change_upstream", f"change on {results.record.upstream}, points", TOOLTIP)
    bars["layer"] = [
        {"transform": [{"filter": "datum.downstream === ''"}], **layer} for layer in bars["layer"]
    ]
    bars["layer"][0]["mark"]["opacity"] = 0.4
    dots = {
        "transform": [{"filter": "datum.downstream !== ''"}],
        "mark": {"type": "point", "size": 32},
        "encoding": {"x": specs.number("change", None), "tooltip": DOT},
    }
    bars["layer"].append(dots)
    return Figure(
        frames.slug("upstream-change", model.model),
        "A bar to the mean, a line across its end for the mean's 95% interval, a dot for each set "
        f"fine-tuned on{frames.label(results, model)}.",
        f"Mean change on {results.record.upstream}: {numbers}.",
        data.drop(columns=["model", "variant"]),
        bars,
    )
