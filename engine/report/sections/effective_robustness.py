"""Accuracy on each set above what accuracy upstream predicts."""

from __future__ import annotations

import numpy as np
import pandas

from engine.measures.effective_robustness import GIVEN, probit
from engine.measures.metrics import ROBUSTNESS
from engine.measures.rows import PRE
from engine.measures.tables import extremes
from engine.report import charts
from engine.report.results import Results
from engine.report.section import Figure, Section, Table
from engine.report.text import signed

NAME = f"{ROBUSTNESS}_pts"
PERCENT = (1, 2, *range(5, 100, 5), 98, 99)  # ticks


def section(results: Results) -> Section | None:
    """None without a line: too few models, or all of the same accuracy upstream."""
    if results.grid.cells[ROBUSTNESS].isna().all():
        return None
    points, upstream = _points(results), results.record.upstream
    means = _means(results)
    models = points[(points["kind"] == "model") & points[NAME].notna()]
    _, high = extremes(models, NAME)
    trained = f" fine-tuned on {high['downstream']}" if high["downstream"] else ""
    group = "method" if len(results.models) == 1 else "model"
    text = "format(100 * cumulativeNormal(datum.value), '.0f')"
    ticks = {"values": probit(np.array(PERCENT)).tolist(), "labelExpr": text, "labelOverlap": True}
    spec = charts.scatter(
        points, "upstream_probit", "set_probit", color=group, facet="evaluated_on", axis=ticks
    )
    titles = {"x": f"on {upstream}, %", "y": "on the set, %"}
    for channel, title in titles.items():
        spec["spec"]["encoding"][channel]["title"] = title
    return Section(
        "effective-robustness",
        f"{means.iloc[0]['method']} is the most robust beyond accuracy"
        if len(means) and len(results.models) == 1
        else "Robustness beyond accuracy",
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
                "scale; a dot a model, dashed the trend line. Above the line is more robust than "
                "accuracy predicts.",
                f"Accuracy on {upstream} against accuracy on each of "
                f"{models['evaluated_on'].nunique()} sets, with a trend line each. Farthest above "
                f"its line: {high['method']}{trained} on {high['evaluated_on']}, "
                f"{signed(high[NAME])} points.",
                points,
                spec,
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


def _titled(results: Results) -> pandas.DataFrame:
    """The cells of pre-trained models and of the arms that tables show, not on their own sets,
    with `method` as its title."""
    cells = results.grid.cells
    pre = cells[cells["method"] == PRE].assign(method="pre-trained")
    cells = pandas.concat([pre, results.cells])
    return cells[cells["downstream"] != cells["evaluated_on"]]


def _points(results: Results) -> pandas.DataFrame:
    """A row a model of a table and set, then the models that the user gave, then two ends of each
    set's line; `kind` is model, given or line."""
    accuracy = results.grid.cells["accuracy"].to_numpy(float)
    titled, parts = _titled(results), []
    for name, trend in results.trends.items():
        shown = titled[titled.index.isin(trend.cells)]
        x, y = accuracy[shown["on_upstream"]], accuracy[shown.index]
        columns = shown[["model", "method", "downstream"]]
        model = columns.assign(kind="model", upstream_pct=x, set_pct=y, **{NAME: shown[ROBUSTNESS]})
        given = pandas.DataFrame(trend.given.T, columns=["upstream_pct", "set_pct"])
        on_set = [model, given.assign(kind="given", method="given by the user")]
        line = trend.line(accuracy[None])
        if not np.isnan(line.slope).any():
            x = pandas.concat(on_set)["upstream_pct"]
            ends = np.array([[x.min(), x.max()]])
            end = {"upstream_pct": ends[0], "set_pct": line.accuracy(ends)[0]}
            on_set.append(pandas.DataFrame(end).assign(kind="line"))
        parts += [rows.assign(evaluated_on=name) for rows in on_set if len(rows)]
    order = {name: k for k, name in enumerate(results.sets(results.models[0]))}
    data = pandas.concat(parts, ignore_index=True)
    data = data.sort_values("evaluated_on", key=lambda names: names.map(order), kind="stable")
    return data.assign(
        upstream_probit=probit(data["upstream_pct"].to_numpy()),
        set_probit=probit(data["set_pct"].to_numpy()),
    )


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
        (x,), (y,) = trend.points(accuracy)
        slope = float(line.slope[0, 0])
        if np.isnan(slope):
            statements.append(
                f"{name}: no line, since all {len(x)} models have the same accuracy on "
                f"{results.record.upstream}."
            )
            continue
        residual = probit(y) - probit(line.accuracy(x[None])[0])
        spread = float(((probit(y) - probit(y).mean()) ** 2).sum())
        share = f", R² {1 - float((residual**2).sum()) / spread:.2f}" if spread > 0 else ""
        statements.append(f"{name}: slope {signed(slope, 2)} on the probit scale{share}.")
    return statements


def _means(results: Results) -> pandas.DataFrame:
    """A row a model and method, highest mean effective robustness first within a model."""
    titled = _titled(results)
    titled = titled[titled["evaluated_on"].isin(results.grid.sets)]
    means = results.grid.mean(results.grid.cells.loc[titled.index], ["arm"]).table(NAME, ROBUSTNESS)
    names = titled.drop_duplicates("arm")[["arm", "model", "method"]]
    data = names.merge(means, on="arm").drop(columns="arm")
    return data.sort_values(["model", NAME], ascending=[True, False], kind="stable")
