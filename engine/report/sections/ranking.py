"""Every method by its mean robustness improvement, best first."""

from __future__ import annotations

from engine.measures.standings import signed
from engine.report import frames, specs, table
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

TOOLTIP = [
    specs.field("method"),
    specs.field("mRI", format="+.2f"),
    specs.field("mRI_low", "95% from", "+.2f"),
    specs.field("mRI_high", "to", "+.2f"),
]
FORMATS = {
    "mRI": "interval",
    "on_downstream_set": "plain1",
    "on_other_sets": "plain1",
    "change_upstream": "interval",
    "published_mRI": "signed1",
}


def section(results: Results) -> Section | None:
    data = frames.ranking(results)
    if data.empty:
        return None
    figures = []
    for model in results.models:
        rows = frames.where(data, model=model.model)
        if rows.empty:
            continue
        numbers = ", ".join(
            f"{method} {signed(mri)}"
            for method, mri in zip(rows["method"], rows["mRI"], strict=True)
        )
        figures.append(
            Figure(
                name=frames.slug("ranking", model.model),
                caption=f"mRI{frames.label(results, model)} in points. A bar starts at the "
                "pre-trained model; the line across its end is the 95% interval.",
                alt=f"Mean robustness improvement{frames.label(results, model)}: {numbers}.",
                data=rows.filter(["method", "mRI", "mRI_low", "mRI_high"]),
                spec=specs.bars("mRI", "mRI, points", TOOLTIP),
            )
        )
    published, judged = "published_mRI" in data, "on_downstream_set" in data
    return Section(
        "ranking",
        "Mean robustness improvement",
        "Mean change in accuracy, in points, on the sets a model was not fine-tuned on: a mean "
        f"over {table.averaged_over(results.models[0])}.",
        figures=figures,
        tables=[
            Table(
                "ranking",
                "mRI with its 95% interval; mean accuracy in percent "
                + ("on the set fine-tuned on and on the others" if judged else "on the sets")
                + f"; mean change in points on {results.record.upstream}"
                + ("; the published mRI." if published else ".")
                + (frames.chosen_on_own_set(results) if judged else ""),
                data,
                {name: kind for name, kind in FORMATS.items() if name in data},
            )
        ],
    )
