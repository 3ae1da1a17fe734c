"""Accuracy on each set above what accuracy upstream predicts."""

from __future__ import annotations

import numpy as np
import pandas

from engine.measures.effective_robustness import GIVEN, probit
from engine.measures.metrics import ROBUSTNESS
from engine.measures.rows import PRE
from engine.measures.tables import extremes, ordered
from engine.report import charts
from engine.report.columns import between
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import signed

NAME = f"{ROBUSTNESS}_pts"
PERCENT = (1, 2, *range(5, 100, 5), 98, 99)  # ticks


def section(results: Results) -> Section | None:
    """None without a line: too few models, or all of the same accuracy upstream."""
    if results.grid.cells[ROBUSTNESS].isna().all():
        return None
    means, data = _means(results), _points(results)
    _, first = extremes(means, NAME)
    upstream, several = results.record.upstream, len(results.models) > 1
    return Section(
        "effective-robustness",
        f"{first['method']}{f' from {first.model}' * several} is the most robust beyond accuracy",
        f"A model that is better on {upstream} is usually better elsewhere too. A set's line shows "
        "how much, over models that nothing made robust to the set, on a probit scale (Taori et "
        "al. 2020; Miller et al. 2021). Effective robustness is the height of a model above the "
        f"line, in points of accuracy. {_basis(results)} Intervals are about {results.population}; "
        "lines over models of this run are fitted again in every draw.",
        _statements(results),
        [
            Figure(
                "effective-robustness",
                f"Accuracy on {upstream} (x) and on each set (y) in percent, both on a probit "
                "scale; a dot a model, dashed the trend line.",
                f"Height above the line of a set: from "
                f"{between(data, NAME, 'label', 'evaluated_on')} points.",
                data.drop(columns="label"),
                _panels(data, upstream, "model" if several else "method"),
            )
        ],
        [
            Table(
                "effective-robustness",
                "Effective robustness in points, a mean over the sets that a model was not "
                "fine-tuned on, with its 95% interval.",
                means,
            )
        ],
    )


def _panels(data: pandas.DataFrame, upstream: str, color: str) -> charts.Spec:
    """A panel a set: a dot a model, and the trend line."""
    shown = data.drop(columns="label")
    spec = charts.scatter(shown, "upstream_probit", "set_probit", color, facet="evaluated_on")
    spec["resolve"] = {"scale": {"x": "independent", "y": "independent"}}
    text = "format(100 * cumulativeNormal(datum.value), '.0f')"
    ticks = {"values": probit(np.array(PERCENT)).tolist(), "labelExpr": text, "labelOverlap": True}
    scale = {"zero": False, "nice": False, "padding": 8}
    for channel, title in (("x", f"on {upstream}, %"), ("y", "on the set, %")):
        spec["spec"]["encoding"][channel] |= {"title": title, "axis": ticks, "scale": scale}
    if (data["kind"] == "line").any():  # Vega warns of a layer without rows
        line = {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1.2, "tooltip": None}
        ends = [{"filter": "datum.kind === 'line'"}]
        spec["spec"]["layer"].insert(0, {"transform": ends, "mark": line})
    return spec


def _titled(results: Results) -> pandas.DataFrame:
    """The cells of pre-trained models and of the arms that tables show, not on their own sets,
    with `method` as its title."""
    cells = results.grid.cells
    pre = cells[cells["method"] == PRE].assign(method="pre-trained")
    cells = pandas.concat([pre, results.cells])
    return cells[cells["downstream"] != cells["evaluated_on"]]


def _points(results: Results) -> pandas.DataFrame:
    """A row a model of a table and set, then the models that the user gave, then two ends of each
    set's line; `kind` is model, given or line. label: of a model, in words."""
    accuracy = results.grid.cells["accuracy"].to_numpy(float)
    titled, parts = _titled(results), []
    for name, trend in results.trends.items():
        shown = titled[titled.index.isin(trend.cells)]
        x, y = accuracy[shown["on_upstream"]], accuracy[shown.index]
        columns = shown[["model", "method", "downstream"]]
        model = columns.assign(kind="model", upstream_pct=x, set_pct=y, **{NAME: shown[ROBUSTNESS]})
        given = pandas.DataFrame(trend.given.T, columns=["upstream_pct", "set_pct"])
        given = given.assign(kind="given", **dict.fromkeys(("model", "method"), GIVEN))
        on_set, line = [model, given], trend.line(accuracy[None])
        if not np.isnan(line.slope).any():
            x = pandas.concat(on_set)["upstream_pct"]
            ends = np.array([[x.min(), x.max()]])
            end = {"upstream_pct": ends[0], "set_pct": line.accuracy(ends)[0]}
            on_set.append(pandas.DataFrame(end).assign(kind="line"))
        parts += [rows.assign(evaluated_on=name) for rows in on_set if len(rows)]
    data = pandas.concat(parts, ignore_index=True)
    trained = data["downstream"].where(data["downstream"].fillna("") != "")
    label = data["method"] + (" fine-tuned on " + trained).fillna("")
    probits = {f"{k}_probit": probit(data[f"{k}_pct"].to_numpy()) for k in ("upstream", "set")}
    order = results.sets(results.models[0])
    return ordered(data.assign(label=label, **probits), evaluated_on=order)


def _basis(results: Results) -> str:
    """What the lines are fitted over, in a sentence for each kind."""
    by_basis: dict[tuple[str, int], list[str]] = {}
    for name, trend in results.trends.items():
        models = trend.given.shape[1] if trend.basis == GIVEN else len(trend.fitted)
        by_basis.setdefault((trend.basis, models), []).append(name)
    return " ".join(
        f"The line of {', '.join(names)} is fitted over {models} {basis}."
        for (basis, models), names in by_basis.items()
    )


def _statements(results: Results) -> list[str]:
    """Slope and fit of every line."""
    accuracy = results.grid.cells["accuracy"].to_numpy(float)[None]
    statements = []
    for name, trend in results.trends.items():
        line = trend.line(accuracy)
        (x,), (y,) = (probit(of) for of in trend.points(accuracy))
        slope, level = float(line.slope[0, 0]), float(line.level[0, 0])
        text = f"slope {signed(slope, 2)} on the probit scale"
        if np.isnan(slope):
            text = f"no line, since all {len(x)} models have the same accuracy on "
            text += results.record.upstream
        elif y.var() > 0:
            text += f", R² {1 - ((y - slope * x - level) ** 2).mean() / y.var():.2f}"
        statements.append(f"{name}: {text}.")
    return statements


def _means(results: Results) -> pandas.DataFrame:
    """A row a model and method, highest mean effective robustness first within a model."""
    titled = _titled(results)
    titled = titled[titled["evaluated_on"].isin(results.grid.sets)]
    means = results.grid.mean(results.grid.cells.loc[titled.index], ["arm"]).table(NAME, ROBUSTNESS)
    names = titled.drop_duplicates("arm")[["arm", "model", "method"]]
    data = names.merge(means, on="arm").drop(columns="arm")
    return data.sort_values(["model", NAME], ascending=[True, False], kind="stable")
