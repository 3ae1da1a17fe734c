"""Accuracy on each set above what accuracy upstream predicts."""

from __future__ import annotations

import numpy as np
import pandas

from engine.measures.effective_robustness import GIVEN, probit
from engine.measures.metrics import ROBUSTNESS, alike
from engine.measures.rows import PRE
from engine.measures.tables import extremes
from engine.report import charts
from engine.report.columns import between
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import listed

NAME = f"{ROBUSTNESS}_pts"
PERCENT = (1, 2, *range(5, 100, 5), 98, 99)  # ticks


def section(results: Results) -> Section | None:
    """None without a line: too few models, or all of the same accuracy upstream."""
    if results.grid.cells[ROBUSTNESS].isna().all():
        return None
    titled = _titled(results)
    means, data = _means(results, titled), _points(results, titled)
    _, first = extremes(means, NAME)
    upstream, several = results.record.upstream, len(results.models) > 1
    fitted_over = listed([*dict.fromkeys(trend.basis for trend in results.trends.values())])
    return Section(
        "effective-robustness",
        f"{first['method']}{f' from {first.model}' * several} is the most robust beyond accuracy",
        f"A model that is better on {upstream} is usually better elsewhere too. A set's line shows "
        "how much, over models that nothing made robust to the set, on a probit scale (Taori et "
        "al. 2020; Miller et al. 2021). Effective robustness is the height of a model above the "
        f"line, in points of accuracy. Lines are fitted over {fitted_over}; those over models of "
        f"this run again in every draw. Intervals are about {results.population}.",
        figures=[
            Figure(
                "effective-robustness",
                f"Accuracy on {upstream} (x) and on each set (y) in percent, both on a probit "
                "scale; a dot a model, dashed the trend line.",
                f"Height above the line of a set: from "
                f"{between(data, NAME, 'method', 'evaluated_on')} points.",
                data,
                _panels(data, upstream, "model" if several else "method"),
            )
        ],
        tables=[
            Table(
                "effective-robustness",
                "Effective robustness in points, a mean over the sets that a model was not "
                "fine-tuned on, each set fine-tuned on counting alike, with its 95% interval.",
                means,
            )
        ],
    )


def _titled(results: Results) -> pandas.DataFrame:
    """The cells of pre-trained models and of the arms that tables show, not on their own sets,
    with `method` as its title."""
    cells = results.grid.cells
    pre = cells[cells["method"] == PRE].assign(method="pre-trained")
    cells = pandas.concat([pre, results.cells])
    return cells[cells["downstream"] != cells["evaluated_on"]]


def _means(results: Results, titled: pandas.DataFrame) -> pandas.DataFrame:
    """A row a model and method, highest mean effective robustness first within a model."""
    titled = titled.dropna(subset=ROBUSTNESS)  # sets without a line
    means = results.grid.mean(titled, ["arm"], alike(titled)).table(NAME, ROBUSTNESS)
    names = titled.drop_duplicates("arm")[["arm", "model", "method"]]
    data = names.merge(means, on="arm").drop(columns="arm")
    return data.sort_values(["model", NAME], ascending=[True, False], kind="stable")


def _points(results: Results, titled: pandas.DataFrame) -> pandas.DataFrame:
    """A row a model of a table and set, then the models that the user gave, then two ends of each
    set's line; `kind` is model, given or line."""
    accuracy, parts = results.grid.cells["accuracy"].to_numpy(float), []
    for name, trend in results.trends.items():
        shown = titled[titled.index.isin(trend.cells)]
        points = shown[["model", "method", "downstream"]].assign(
            kind="model",
            upstream_pct=accuracy[shown["on_upstream"]],
            set_pct=shown["accuracy"],
            **{NAME: shown[ROBUSTNESS]},
        )
        if trend.basis == GIVEN:
            given = pandas.DataFrame(trend.given.T, columns=["upstream_pct", "set_pct"])
            points = pandas.concat([points, given.assign(kind="given", model=GIVEN, method=GIVEN)])
        x = np.array([points["upstream_pct"].min(), points["upstream_pct"].max()])
        ends = pandas.DataFrame({"kind": "line", "upstream_pct": x})
        ends["set_pct"] = trend.predicted(accuracy[None], x[None])[0]
        points = pandas.concat([points, ends.dropna()])
        parts.append(points.assign(evaluated_on=name))
    data = pandas.concat(parts, ignore_index=True)
    for name in ("upstream", "set"):
        data[f"{name}_probit"] = probit(data[f"{name}_pct"].to_numpy())
    return data


def _panels(data: pandas.DataFrame, upstream: str, color: str) -> charts.Spec:
    """A panel a set: a dot a model, and the trend line."""
    spec = charts.scatter(data, "upstream_probit", "set_probit", color, facet="evaluated_on")
    spec["resolve"] = {"scale": {"x": "independent", "y": "independent"}}
    text = "format(100 * cumulativeNormal(datum.value), '.0f')"
    ticks = {"values": probit(np.array(PERCENT)).tolist(), "labelExpr": text, "labelOverlap": True}
    scale = {"zero": False, "nice": False, "padding": 8}
    for channel, title in (("x", f"on {upstream}, %"), ("y", "on the set, %")):
        spec["spec"]["encoding"][channel] |= {"title": title, "axis": ticks, "scale": scale}
    line = {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1.2, "tooltip": None}
    ends = [{"filter": "datum.kind === 'line'"}]
    spec["spec"]["layer"].insert(0, {"transform": ends, "mark": line})
    return spec
