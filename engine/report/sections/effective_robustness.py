"""Accuracy on each dataset above what upstream accuracy predicts."""

from __future__ import annotations

import numpy as np
import pandas

from engine.measures.effective_robustness import CAMPAIGN_MODELS, Trend, probit
from engine.measures.metrics import ROBUSTNESS
from engine.measures.rows import PRE
from engine.report import charts
from engine.report.columns import between
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import counted, listed

NAME = f"{ROBUSTNESS}_pts"
BEFORE = "pretrained"
PERCENT = (1, 2, *range(5, 100, 5), 98, 99)  # ticks


def section(results: Results) -> Section | None:
    """None without a line: too few models, or all with the same upstream accuracy."""
    upstream, several = results.record.upstream, len(results.models) > 1
    if upstream is None or results.grid.cells[ROBUSTNESS].isna().all():
        return None
    titled = _titled(results)
    means, data, lines = _means(results, titled), _points(results, titled), _lines(results)
    fitted_over = listed([*dict.fromkeys(trend.basis for trend in results.trends.values())])
    # By their own 95% intervals, not adjusted for their number.
    tuned = means[means["method"] != BEFORE]
    above, below = (tuned[f"{ROBUSTNESS}_low"] > 0).sum(), (tuned[f"{ROBUSTNESS}_high"] < 0).sum()
    is_outside = titled.dropna(subset=ROBUSTNESS)["extrapolated_pct"] > 0
    outside = ""
    if is_outside.any():
        outside = (
            f" {is_outside.sum()} of {len(is_outside)} accuracies are outside the range that their "
            "line is fitted over; the extrapolated line is weak evidence there."
        )
    return Section(
        "effective-robustness",
        f"{above} of {counted('method', len(tuned))} are significantly above the trend line, "
        f"{below} below",
        f"A model that is better on {upstream} is usually better on other datasets too. A line, "
        "fitted on a probit scale to models without robustness interventions, shows by how much "
        "(Taori et al. 2020; Miller et al. 2021). Effective robustness is a model's height above "
        f"the line, in points of accuracy. Baseline: {fitted_over}.{outside} Intervals "
        "include the uncertainty of the lines, which are refitted in every draw. Published models "
        "are resampled by family, because members of a family are near copies; your own models "
        f"are fixed. Intervals generalise to {results.population}.",
        figures=[
            Figure(
                "effective-robustness",
                f"Accuracy on {upstream} (x) and on each dataset (y) in percent, on probit scales. "
                "One dot per model (published: one per family); dashed: trend line; dotted: "
                "extrapolation.",
                f"Height above a dataset's line: from "
                f"{between(data, NAME, 'method', 'evaluated_on')} points.",
                data,
                _panels(data, upstream, "model" if several else "method"),
            )
        ],
        tables=[
            Table(
                "effective-robustness",
                "Mean effective robustness in points over the other datasets with a line, with 95% "
                "intervals, and the fraction of accuracies for which the line is extrapolated. "
                "Downstream datasets have equal weight.",
                means,
            ),
            Table(
                "effective-robustness-lines",
                f"Lines: slope and R2 on the probit scale, and the range of accuracy on {upstream} "
                "that they are fitted over.",
                lines,
            ),
        ],
    )


def _lines(results: Results) -> pandas.DataFrame:
    """One row per dataset: the models of its line, and the fit."""
    accuracy, rows = results.grid.cells["accuracy"].to_numpy(float), []
    for name, trend in results.trends.items():
        fit = trend.fit(accuracy)
        families = len(set(trend.families.tolist())) or fit.models
        rows.append((name, trend.basis, fit.models, families, fit.slope, fit.r2, fit.low, fit.high))
    names = ["set", "fitted_over", "models", "families", "slope", "R2", "from_pct", "to_pct"]
    return pandas.DataFrame(rows, columns=names)


def _titled(results: Results) -> pandas.DataFrame:
    """The cells of pretrained models and shown arms on datasets other than the downstream one,
    with titles as `method`, and extrapolated_pct: 100 if the line is extrapolated, else 0."""
    cells = results.grid.cells
    pre = cells[cells["method"] == PRE].assign(method=BEFORE)
    cells = pandas.concat([pre, results.cells])
    cells = cells[~cells["on_downstream"]].assign(extrapolated_pct=np.nan)
    accuracy = results.grid.cells["accuracy"].to_numpy(float)
    for name, trend in results.trends.items():
        here = cells["evaluated_on"] == name
        upstream = accuracy[cells.loc[here, "on_upstream"]]
        cells.loc[here, "extrapolated_pct"] = 100.0 * trend.fit(accuracy).extrapolates(upstream)
    return cells


def _means(results: Results, titled: pandas.DataFrame) -> pandas.DataFrame:
    """One row per model and method, highest mean effective robustness first within a model."""
    titled = titled.dropna(subset=ROBUSTNESS)  # sets without a line
    means = results.grid.mean(titled, ["arm"]).table(NAME, ROBUSTNESS)
    names = titled.drop_duplicates("arm")[["arm", "model", "method"]]
    share = titled.groupby("arm")["extrapolated_pct"].mean().reset_index()
    data = names.merge(means, on="arm").merge(share, on="arm").drop(columns="arm")
    return data.sort_values(["model", NAME], ascending=[True, False], kind="stable")


def _points(results: Results, titled: pandas.DataFrame) -> pandas.DataFrame:
    """One row per shown model and dataset, then models of the baseline, then the two endpoints of
    each dataset's line and of its extrapolated parts; `kind` is model, given, line, below or
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
    """The models of the baseline: all of a user's; of published ones, the median of each family by
    upstream accuracy."""
    data = pandas.DataFrame(trend.given.T, columns=["upstream_pct", "set_pct"])
    if not len(trend.families):
        return data
    data = data.sort_values("upstream_pct", kind="stable")
    of_family = data.groupby(trend.families[data.index])
    middle = of_family["set_pct"].transform("size") // 2
    return data[of_family.cumcount() == middle]


def _panels(data: pandas.DataFrame, upstream: str, color: str) -> charts.Spec:
    """One panel per dataset with one dot per model, and the trend line."""
    spec = charts.scatter(data, "upstream_probit", "set_probit", color, facet="evaluated_on")
    spec["resolve"] = {"scale": {"x": "independent", "y": "independent"}}
    text = "format(100 * cumulativeNormal(datum.value), '.0f')"
    ticks = {"values": probit(np.array(PERCENT)).tolist(), "labelExpr": text, "labelOverlap": True}
    scale = {"zero": False, "nice": False, "padding": 8}
    for channel, title in (("x", f"on {upstream}, %"), ("y", "on the dataset, %")):
        spec["spec"]["encoding"][channel] |= {"title": title, "axis": ticks, "scale": scale}
    for kind, dash in (("line", [4, 3]), ("below", [1, 3]), ("above", [1, 3])):
        line = {"type": "line", "strokeDash": dash, "strokeWidth": 1.2, "tooltip": None}
        ends = [{"filter": f"datum.kind === '{kind}'"}]
        spec["spec"]["layer"].insert(0, {"transform": ends, "mark": line})
    return spec
