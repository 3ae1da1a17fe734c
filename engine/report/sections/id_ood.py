"""Does accuracy on the other sets follow accuracy upstream, for every fine-tuned model?"""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pandas

from engine.report import frames, specs
from engine.report.section import Figure, Section
from engine.report.tables import Results

FEWEST = 3  # models of a trend line
TOOLTIP = [
    specs.field("model"),
    specs.field("method"),
    specs.field("downstream", "fine-tuned on"),
    specs.field("upstream", "upstream, %", ".2f"),
    specs.field("on_other_sets", "on the other sets, %", ".2f"),
]


def section(results: Results) -> Section | None:
    data = _points(results)
    fine_tuned = data[data["method"] != "pre-trained"] if len(data) else data
    if len(fine_tuned) < FEWEST or np.ptp(data["upstream"]) == 0:
        return None
    slope, start = np.polyfit(data["upstream"], data["on_other_sets"], 1)
    r = float(np.corrcoef(data["upstream"], data["on_other_sets"])[0, 1])
    upstream = results.record.upstream
    text = (
        f"A dot for each fine-tuned model: accuracy on {upstream} against mean accuracy on the "
        "sets that it was not fine-tuned on. Above the line a model is more robust than its "
        "accuracy upstream suggests."
    )
    fit = (
        f"Least-squares line over {len(data)} models: {slope:+.2f} points on the other sets for a "
        f"point on {upstream} (r = {r:+.2f})."
    )
    encoding = {
        "x": specs.number("upstream", f"accuracy on {upstream}, %", zero=False, format="~r"),
        "y": specs.number("on_other_sets", "on the other sets, %", zero=False, format="~r"),
    }
    group = "method" if len(results.models) == 1 else "model"
    legend = {"orient": "bottom", "columns": 3, "title": None, "symbolOpacity": 1}
    color = {"field": group, "type": "nominal", "sort": None, "legend": legend}
    look = {"color": color, "shape": color}  # there are more methods than colours
    line = pandas.DataFrame({"upstream": [data["upstream"].min(), data["upstream"].max()]})
    line["on_other_sets"] = start + slope * line["upstream"]
    return Section(
        "id-ood",
        "In distribution and out of it",
        text,
        [fit],
        [
            Figure(
                "id-ood",
                f"Colours are {group}s; hover over a dot for its name.",
                fit,
                data,
                {
                    "height": 360,
                    "encoding": encoding,
                    "layer": [
                        {
                            "mark": {"type": "point", "size": 34, "opacity": 0.75},
                            "encoding": {**look, "tooltip": TOOLTIP},
                        },
                        {
                            "data": {"values": line.to_dict("records")},
                            "mark": {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1.2},
                        },
                    ],
                },
            )
        ],
    )


def _points(results: Results) -> pandas.DataFrame:
    """A row a fine-tuned model, and one for each pre-trained one, whose mean is over all sets."""
    upstream, rows = results.record.upstream, []
    for model in results.models:
        if upstream not in model.before:
            continue
        rows.append(
            {
                "model": model.model,
                "method": "pre-trained",
                "downstream": "",
                "upstream": model.before[upstream],
                "on_other_sets": fmean(model.before[name] for name in model.sets),
            }
        )
        for line in model.lines:
            for name in model.sets:
                after = line.after[name]
                if upstream in after:
                    row = frames.of_line(model, line) | {
                        "downstream": name,
                        "upstream": after[upstream],
                        "on_other_sets": fmean(after[k] for k in model.sets if k != name),
                    }
                    rows.append({key: x for key, x in row.items() if key != "variant"})
    return pandas.DataFrame(rows)
