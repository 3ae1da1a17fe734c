"""Accuracy by training step and by alpha, and methods against interpolations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas

from engine.measures import dynamics
from engine.measures.equal_accuracy import against_curve
from engine.report import charts
from engine.report.results import Results, title
from engine.report.section import Section, Table
from engine.report.text import counted, listed, rounded

LABELS = {
    "downstream": "downstream dataset",
    "ood": "other datasets",
    "upstream": "upstream dataset",
}
X_OF_STEP_0 = 0.5  # where step 0 stands on an axis of logarithms
ARM = ["model", "method", "variant"]
BARRIERS = {
    "barrier_downstream_pts": "the downstream dataset",
    "barrier_OOD_pts": "the other datasets",
}


def during_training(results: Results) -> Section | None:
    """Accuracy during fine-tuning, and the slides' claim that robustness falls before downstream
    accuracy saturates."""
    made = {
        (arm.model, title(arm, results.record.methods), arm.variant): (points, claim)
        for arm, points, claim in dynamics.curves(results.grid)
    }
    if not made:
        return None
    points = pandas.concat({arm: of for arm, (of, _) in made.items()}, names=ARM)
    points = points.reset_index(ARM).rename(
        columns={"low": "accuracy_low", "high": "accuracy_high", "value": "accuracy_pct"}
    )
    steps = points["step"].clip(lower=X_OF_STEP_0)
    points = points.assign(quantity=points["quantity"].map(LABELS), at=steps)
    options: dict[str, Any] = {"x_title": "optimizer step", "ticks": step_ticks(points["step"])}
    claims = pandas.DataFrame(columns=["holds"])
    if rising := {arm: claim for arm, (_, claim) in made.items() if len(claim)}:
        units = {name: f"{name}_pct" for name in ("peak_OOD", "saturation_OOD")}
        claims = pandas.concat(rising, names=ARM).reset_index(ARM)
        claims = claims.rename(columns=units | {"fall": "fall_pts"})
    return Section(
        "dynamics",
        "OOD accuracy falls significantly before downstream accuracy saturates for "
        f"{int(claims['holds'].sum())} of {counted('method', len(made))}",
        "Means over the downstream datasets. Downstream accuracy saturates at the first step with "
        "95% of its total rise, if it rises. OOD accuracy at that step is compared with the best "
        "earlier step, by an interval that is simultaneous for all earlier steps; a fall that "
        "recovers by then is seen in the figure alone.",
        figures=charts.by_model(
            results,
            "dynamics",
            "Accuracy in percent by optimizer step, with 95% intervals; pre: pretrained model",
            points.drop(columns="variant"),
            ("accuracy_pct", "method", "quantity"),
            lambda rows: charts.curve(
                rows, "at", "accuracy_pct", "quantity", facet="method", **options
            ),
        ),
        tables=[
            Table(
                "dynamics-claims",
                "Steps at which OOD accuracy peaks and downstream accuracy saturates; fall: OOD "
                "accuracy at the best earlier step minus that at saturation, in points.",
                claims,
            )
        ]
        * bool(rising),
    )


def step_ticks(steps: pandas.Series) -> dict[float, str]:
    """Labels of an axis of optimizer steps, by position; step 0 stands at `X_OF_STEP_0`."""
    return {X_OF_STEP_0: "pre", **{step: f"{step:,.0f}" for step in sorted({*steps} - {0})}}


def barrier(results: Results) -> Section | None:
    """None if no weights are interpolated between two endpoints."""
    data = _barriers(results)
    if data.empty:
        return None
    shown = {words: rounded(data[name].max()) for name, words in BARRIERS.items() if name in data}
    most = listed([f"{points} points on {words}" for words, points in shown.items()])
    falls, has_any = f"Interpolated models fall at most {most}", any(map(float, shown.values()))
    if not has_any:
        falls = "No interpolated model falls"
    return Section(
        "barrier",
        f"{falls} below the line between both endpoints",
        "The barrier is the largest amount, over the evaluated alphas, by which accuracy falls "
        "below the straight line between both endpoints (Entezari et al. 2022). As the largest of "
        "several differences, it is biased upwards on few images.",
        tables=[Table("barrier", "Barrier in points, by downstream dataset.", data)] * has_any,
    )


def _barriers(results: Results) -> pandas.DataFrame:
    """One row per curve and downstream dataset."""
    cells, rows = results.grid.cells, []
    on_downstream = cells[cells["on_downstream"]]
    accuracies = {
        name: of.groupby(["arm", "downstream"])["accuracy"].mean()
        for name, of in zip(BARRIERS, (on_downstream, results.grid.ri_cells), strict=True)
    }
    for (model, *_), curve in _interpolations(results):
        names = {"model": model, "method": curve["method"].iloc[0]}
        alpha = curve["alpha"].to_numpy()
        for downstream in results.downstreams(str(model)) if {0, 1} <= set(curve["alpha"]) else ():
            row = names | {"downstream": downstream, "alphas": len(curve)}
            for name, accuracy in accuracies.items():
                known = accuracy.reindex([(arm, downstream) for arm in curve["arm"]]).to_numpy()
                if not np.isnan(known).any():
                    before, after = (known[(alpha == end).argmax()] for end in (0, 1))
                    row[name] = ((1 - alpha) * before + alpha * after - known).max()
            rows.append(row)
    return pandas.DataFrame(rows)


def _interpolations(results: Results) -> Any:
    """The arms of each curve of interpolated models, with their model, key, variant and setting."""
    arms = results.arms[results.arms["alpha"].notna()]
    return arms.groupby(["model", "key", "variant", "setting"], sort=False)


def equal_accuracy(results: Results) -> Section | None:
    """Robustness at equal downstream accuracy, along a curve of interpolated models; None unless a
    curve reaches the downstream accuracy of a method."""
    data = _compared(results)
    if data.empty or data["difference_pts"].isna().all():
        return None
    known = data.dropna(subset="difference_pts")
    above, below = (known["difference_low"] > 0).sum(), (known["difference_high"] < 0).sum()
    curves = listed([*dict.fromkeys(data["curve"])])
    reached = {*known["method"]}
    out = [name for name in dict.fromkeys(data["method"]) if name not in reached]
    return Section(
        "equal-accuracy",
        f"At equal downstream accuracy, methods are significantly more robust than {curves} in "
        f"{above} of {counted('comparison', len(known))}, less in {below}",
        "A method that adapts less often loses less. Each method is therefore compared with the "
        "interpolation that has the same mean accuracy on the downstream datasets, linearly "
        "between two evaluated alphas (the trade-off chart shows the curve). Intervals are paired, "
        f"and not adjusted for their number. They generalise to {results.population}."
        + " No images are held out: downstream accuracy is that on the images trained on."
        * (not results.record.holdout)
        + (f" The curve does not reach the accuracy of {listed(out)}." if out else ""),
        tables=[
            Table(
                "equal-accuracy",
                "Mean accuracy in percent on the downstream datasets and on the other datasets, "
                "that of the curve on the other datasets at equal downstream accuracy, and the "
                "difference (method minus curve) in points, with 95% intervals.",
                data,
            )
        ],
    )


def _compared(results: Results) -> pandas.DataFrame:
    """One row per curve and shown method of the same model and setting."""
    shown, parts = results.shown, []
    if "downstream_accuracy_pct" not in shown:
        return pandas.DataFrame()
    names = shown.set_index("arm")["method"]
    for (model, key, _, setting), curve in _interpolations(results):
        is_alike = (shown["model"] == model) & (shown["setting"] == setting)
        compared = shown.loc[is_alike & (shown["key"] != key), "arm"].tolist()
        if len(curve) < 2 or not compared:
            continue
        points = curve.sort_values("alpha")["arm"].tolist()
        table = against_curve(results.grid, points, compared)
        curve_arm = results.grid.arms[points[0]]._replace(alpha=None)
        table.insert(0, "curve", title(curve_arm, results.record.methods))
        table.insert(1, "method", table.pop("arm").map(names))
        parts.append(table.assign(model=str(model))[["model", *table]])
    return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()
