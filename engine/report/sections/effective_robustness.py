"""Accuracy on each set above what accuracy upstream predicts."""

from __future__ import annotations

import numpy as np
import pandas

from engine.measures.effective_robustness import CAMPAIGN_MODELS, Trend, probit
from engine.measures.metrics import ROBUSTNESS, equal_column_weights
from engine.measures.rows import PRE
from engine.report import charts
from engine.report.columns import between
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import counted, listed

NAME = f"{ROBUSTNESS}_pts"
BEFORE = "pre-trained"
PERCENT = (1, 2, *range(5, 100, 5), 98, 99)  # ticks


def section(results: Results) -> Section | None:
    """None without a line: too few models, or all of the same accuracy upstream."""
    if results.grid.cells[ROBUSTNESS].isna().all():
        return None
    titled = _titled(results)
    means, data, lines = _means(results, titled), _points(results, titled), _lines(results)
    upstream, several = results.record.upstream, len(results.models) > 1
    fitted_over = listed([*dict.fromkeys(trend.basis for trend in results.trends.values())])
    return Section(
        "effective-robustness",
        _heading(means),
        f"A model that is better on {upstream} is usually better elsewhere too. A set's line shows "
        "how much, over models that nothing made robust to the set, on a probit scale (Taori et "
        "al. 2020; Miller et al. 2021). Effective robustness is the height of a model above the "
        f"line, in points of accuracy. Lines are fitted over {fitted_over}.{_outside(titled)} "
        "Intervals cover the lines too, which are fitted again in every draw: published models are "
        "drawn by families, whose members are near copies of each other; those that a user gave "
        f"are taken as they are. Intervals are about {results.population}.",
        figures=[
            Figure(
                "effective-robustness",
                f"Accuracy on {upstream} (x) and on each set (y) in percent, both on a probit "
                "scale; a dot a model (of published models one a family), dashed the trend line, "
                "dotted where it is extrapolated.",
                f"Height above the line of a set: from "
                f"{between(data, NAME, 'method', 'evaluated_on')} points.",
                data,
                _panels(data, upstream, "model" if several else "method"),
            )
        ],
        tables=[
            Table(
                "effective-robustness",
                "Effective robustness in points, a mean over the sets that have a line and that a "
                "model was not fine-tuned on, each set fine-tuned on counting alike, with its 95% "
                "interval; and the share of these accuracies whose line is extrapolated.",
                means,
            ),
            Table(
                "effective-robustness-lines",
                f"The lines: slope and R2 on the probit scale, and the range of accuracy on "
                f"{upstream} that they are fitted over.",
                lines,
            ),
        ],
    )


def _heading(means: pandas.DataFrame) -> str:
    """How many fine-tuned models lie above and below the line by their intervals."""
    tuned = means[means["method"] != BEFORE]
    above = int((tuned[f"{ROBUSTNESS}_low"] > 0).sum())
    below = int((tuned[f"{ROBUSTNESS}_high"] < 0).sum())
    return (
        f"Of {counted('fine-tuned row', len(tuned))}, {above} lie above and {below} below what "
        "accuracy upstream predicts, by their 95% intervals"
    )


def _outside(titled: pandas.DataFrame) -> str:
    """How many of the accuracies lie outside the range that their set's line is fitted over."""
    shares = titled.dropna(subset=ROBUSTNESS)["extrapolated_pct"]
    outside = int((shares > 0).sum())
    if not outside:
        return ""
    return (
        f" {outside} of {len(shares)} accuracies lie outside the range that their line is fitted "
        "over: it is extrapolated there, and says little."
    )


def _lines(results: Results) -> pandas.DataFrame:
    """A row a set: what its line is fitted over, and the fit."""
    accuracy, rows = results.grid.cells["accuracy"].to_numpy(float), []
    for name, trend in results.trends.items():
        fit = trend.fit(accuracy)
        families = len(set(trend.families.tolist())) or fit.models
        rows.append((name, trend.basis, fit.models, families, fit.slope, fit.r2, fit.low, fit.high))
    names = ["set", "fitted_over", "models", "families", "slope", "R2", "from_pct", "to_pct"]
    return pandas.DataFrame(rows, columns=names)


def _titled(results: Results) -> pandas.DataFrame:
    """The cells of pre-trained models and of the arms that tables show, not on their own sets,
    with `method` as its title, and extrapolated_pct: 100 where the line of the set is, else 0."""
    cells = results.grid.cells
    pre = cells[cells["method"] == PRE].assign(method=BEFORE)
    cells = pandas.concat([pre, results.cells])
    cells = cells[cells["downstream"] != cells["evaluated_on"]].assign(extrapolated_pct=np.nan)
    accuracy = results.grid.cells["accuracy"].to_numpy(float)
    for name, trend in results.trends.items():
        here = cells["evaluated_on"] == name
        upstream = accuracy[cells.loc[here, "on_upstream"]]
        cells.loc[here, "extrapolated_pct"] = 100.0 * trend.fit(accuracy).extrapolates(upstream)
    return cells


def _means(results: Results, titled: pandas.DataFrame) -> pandas.DataFrame:
    """A row a model and method, highest mean effective robustness first within a model."""
    titled = titled.dropna(subset=ROBUSTNESS)  # sets without a line
    means = results.grid.mean(titled, ["arm"], equal_column_weights(titled)).table(NAME, ROBUSTNESS)
    names = titled.drop_duplicates("arm")[["arm", "model", "method"]]
    share = titled.groupby("arm")["extrapolated_pct"].mean().reset_index()
    data = names.merge(means, on="arm").merge(share, on="arm").drop(columns="arm")
    return data.sort_values(["model", NAME], ascending=[True, False], kind="stable")


def _points(results: Results, titled: pandas.DataFrame) -> pandas.DataFrame:
    """A row a model of a table and set, then models of the baseline, then two ends of each
    set's line, and of its parts that are extrapolated; `kind` is model, given, line, below or
    above."""
    accuracy, parts = results.grid.cells["accuracy"].to_numpy(float), []
    for name, trend in results.trends.items():
        shown = titled[titled.index.isin(trend.cells)]
        fit = trend.fit(accuracy)
        points = shown[["model", "method", "downstream"]].assign(
            kind="model",
            upstream_pct=accuracy[shown["on_upstream"]],
            set_pct=shown["accuracy"],
            **{NAME: shown[ROBUSTNESS]},
        )
        if trend.basis != CAMPAIGN_MODELS:
            names = {"kind": "given", "model": trend.basis, "method": trend.basis}
            points = pandas.concat([points, _shown_of(trend).assign(**names)])
        reach = points["upstream_pct"].min(), points["upstream_pct"].max()
        for kind, *ends in (
            ("line", fit.low, fit.high), ("below", reach[0], fit.low), ("above", fit.high, reach[1])
        ):  # fmt: skip
            x = np.array(ends)
            if x[0] < x[1]:
                line = pandas.DataFrame({"kind": kind, "upstream_pct": x})
                line["set_pct"] = trend.predicted(accuracy[None], x[None])[0]
                points = pandas.concat([points, line.dropna()])
        parts.append(points.assign(evaluated_on=name))
    data = pandas.concat(parts, ignore_index=True)
    for name in ("upstream", "set"):
        data[f"{name}_probit"] = probit(data[f"{name}_pct"].to_numpy())
    return data


def _shown_of(trend: Trend) -> pandas.DataFrame:
    """The given models: all of a user's, and of published ones the middle of each family, in
    accuracy upstream."""
    data = pandas.DataFrame(trend.given.T, columns=["upstream_pct", "set_pct"])
    if not len(trend.families):
        return data
    data = data.sort_values("upstream_pct", kind="stable")
    of_family = data.groupby(trend.families[data.index])
    middle = of_family["set_pct"].transform("size") // 2
    return data[of_family.cumcount() == middle]


def _panels(data: pandas.DataFrame, upstream: str, color: str) -> charts.Spec:
    """A panel a set: a dot a model, and the trend line."""
    spec = charts.scatter(data, "upstream_probit", "set_probit", color, facet="evaluated_on")
    spec["resolve"] = {"scale": {"x": "independent", "y": "independent"}}
    text = "format(100 * cumulativeNormal(datum.value), '.0f')"
    ticks = {"values": probit(np.array(PERCENT)).tolist(), "labelExpr": text, "labelOverlap": True}
    scale = {"zero": False, "nice": False, "padding": 8}
    for channel, title in (("x", f"on {upstream}, %"), ("y", "on the set, %")):
        spec["spec"]["encoding"][channel] |= {"title": title, "axis": ticks, "scale": scale}
    for kind, dash in (("line", [4, 3]), ("below", [1, 3]), ("above", [1, 3])):
        line = {"type": "line", "strokeDash": dash, "strokeWidth": 1.2, "tooltip": None}
        ends = [{"filter": f"datum.kind === '{kind}'"}]
        spec["spec"]["layer"].insert(0, {"transform": ends, "mark": line})
    return spec
