"""How sure: each method against the best, every two methods, and how predictions changed."""

from __future__ import annotations

from typing import Any

import pandas

from engine.measures import intervals
from engine.measures.rows import Arm
from engine.measures.standings import Standings, counted
from engine.report import certainty, frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

SHARES = ("same_top1", "lost", "gained", intervals.ERROR)
TOOLTIP = [
    specs.field("method"),
    specs.field("difference", "difference in mRI", "+.2f"),
    specs.field("difference_low", "95% from", "+.2f"),
    specs.field("difference_high", "to", "+.2f"),
]


def section(results: Results) -> Section | None:
    models = [model for model in results.models if len(model.ranked()) > 1]
    if not models:
        return None
    sure = results.sure
    data = pandas.DataFrame([row for model in models for row in _against_best(results, model)])
    formats = {"difference": "interval", "corrected_p": "p"}
    formats |= dict.fromkeys(SHARES, "half")
    return Section(
        "how-sure",
        "How sure",
        "Differences are paired: both methods see the same draw of images. The population is "
        f"{sure.population}. p is of the paired bootstrap, corrected for "
        f"{counted('comparison', sure.family)} (Holm).",
        figures=[_figure(results, model, data) for model in models],
        tables=[
            Table(
                "how-sure",
                "Each method's mRI less that of the best. On the other sets: percent of images "
                "with the same answer before and after, answers lost and gained; expected "
                "calibration error in points, debiased and without an interval; ± is half "
                "the width of a 95% interval.",
                data,
                {name: kind for name, kind in formats.items() if name in data},
            ),
            _pairs(results),
        ],
    )


def _against_best(results: Results, model: Standings) -> list[dict[str, Any]]:
    best, *_ = ranked = model.ranked()
    tests = results.sure.against(best.arm)
    means = certainty.behaviour_means(results.sure, model)
    rows = []
    for line in ranked:
        row: dict[str, Any] = frames.of_line(model, line)
        if test := tests.get(line.arm):
            row |= {
                "difference": test.difference,
                "difference_low": test.low,
                "difference_high": test.high,
                "corrected_p": test.p_corrected,
            }
        for name in SHARES:
            row |= {name: means[line.arm][name]} | frames.ends(results, name, name, line.arm)
        rows.append(row)
    order = ["difference", "difference_low", "difference_high", "corrected_p"]
    order = ["model", "method", "variant", *order]
    return [{name: row.get(name) for name in [*order, *row]} for row in rows]


def _figure(results: Results, model: Standings, data: pandas.DataFrame) -> Figure:
    columns = ["method", "difference", "difference_low", "difference_high"]
    rows = frames.where(data, model=model.model).dropna(subset=["difference"]).filter(columns)
    best, of_model = model.ranked()[0].title, frames.label(results, model)
    apart = rows.query("difference_high < 0")["method"]
    return Figure(
        frames.slug("how-sure", model.model),
        f"mRI less {best}'s{of_model}, with the paired 95% interval, not corrected for the number "
        "of comparisons.",
        f"Paired difference in mRI to {best}{of_model}; intervals wholly below 0: "
        f"{', '.join(apart) or 'none'}.",
        rows,
        specs.bars("difference", f"mRI less {best}'s, points", TOOLTIP),
    )


def _pairs(results: Results) -> Table:
    """Every comparison that was made, of mRI and on single sets."""
    titles: dict[Arm, str] = {line.arm: line.title for _, line in results.lines}
    rows = [
        {
            "model": row.model,
            "method": titles[row.arm],
            "against": titles[row.against],
            "evaluated_on": row.evaluated_on or "all (mRI)",
            "difference": row.difference,
            "difference_low": row.low,
            "difference_high": row.high,
            "p": row.p,
            "corrected_p": row.p_corrected,
        }
        for row in results.sure.comparisons
    ]
    data = pandas.DataFrame(rows)
    return Table(
        "comparisons",
        "Every two methods: difference in mRI, or in mean accuracy on a set, in points with its "
        "95% interval; p, and corrected for all comparisons of mRI, or of all sets.",
        data,
        {"difference": "interval", "p": "p", "corrected_p": "p"},
    )
