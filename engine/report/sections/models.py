"""Methods beside pre-trained models, where there are several."""

from __future__ import annotations

import pandas

from engine.report import frames, headline, specs, table
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

TOOLTIP = [specs.field("method"), specs.field("model"), specs.field("mRI", format="+.2f")]


def section(results: Results) -> Section | None:
    if len(results.models) < 2:
        return None
    ranking = frames.ranking(results)
    if ranking.empty:
        return None
    data = ranking.filter(["model", "method", "mRI", "mRI_low", "mRI_high"])
    end = frames.scale_end(data["mRI"])
    wide = data.pivot_table("mRI", "method", "model", sort=False).reset_index()
    wide.columns = pandas.Index(map(str, wide.columns))
    best = [(model.model, model.ranked()[0]) for model in results.models if model.lines]
    alt = ", ".join(f"{model}: {line.title} {line.mri.mri:+.1f}" for model, line in best)
    return Section(
        "models",
        "Methods and pre-trained models",
        f"mRI in points, a mean over {table.averaged_over(results.models[0])}.",
        headline.findings(results.models),
        figures=[
            Figure(
                "models",
                "mRI of every method (rows) from every pre-trained model (columns).",
                f"mRI by method and pre-trained model; the best of each: {alt}.",
                data,
                specs.heat_map("model", "method", "mRI", end, TOOLTIP, legend=True),
            )
        ],
        tables=[
            Table(
                "models",
                "mRI in points, a column a pre-trained model.",
                wide,
                {name: "signed1" for name in wide.columns[1:]},
            )
        ],
    )
