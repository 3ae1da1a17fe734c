"""Accuracy by training step, images per class, fraction of the training set, and alpha."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas

from engine.measures import dynamics, tables
from engine.report import charts
from engine.report.results import FINE_TUNE, Results, title
from engine.report.section import Section, Table
from engine.report.sections.figures import by_model
from engine.report.text import counted, ends, listed, rounded, signed

LABELS = {"downstream": "set fine-tuned on", "ood": "other sets", "upstream": "upstream set"}
X_OF_STEP_0 = 0.5  # where step 0 stands on an axis of logarithms
ARM = ["model", "method", "variant"]
NUMBERS = ["mRI_pts", "mRI_low", "mRI_high"]
NUMBERS += ["on_downstream_set_pct", "on_downstream_set_low", "on_downstream_set_high"]
BARRIERS = {
    "barrier_on_downstream_set_pts": "the downstream dataset",
    "barrier_on_other_sets_pts": "the other datasets",
}


def shots(results: Results) -> Section | None:
    """Fine-tuning on K images per class."""
    claim = " On the slides, OpenAI's and LAION-2B's CLIPs collapse even at K = 1."
    return _varied(results, "dataset.shots", "shots", "images per class", "With K = {:g}", claim)


def portions(results: Results) -> Section | None:
    """Fine-tuning on a fraction of a training set."""
    axis, at = "fraction of the training images", "On a fraction of {:g}"
    return _varied(results, "dataset.portion", "portions", axis, at, "")


def _varied(
    results: Results, key: str, name: str, axis: str, at: str, claim: str
) -> Section | None:
    """Every method by the values of a key, or None if the campaign does not vary it."""
    rows = points(results, key)
    if rows.empty:
        return None
    texts = [f"{x:g}" if math.isfinite(x) else "all" for x in rows["value"]]
    numbers = [name for name in NUMBERS if name in rows]
    data = rows.assign(value=texts)[["model", "method", "value", *numbers]]
    # "all" is placed one doubling after the largest number of the logarithmic axis.
    largest = max((x for x in rows["value"] if math.isfinite(x)), default=1.0)
    drawn = data.assign(x=rows["value"].clip(upper=2 * largest))
    ticks = dict(sorted(zip(drawn["x"], texts, strict=True)))
    options: dict[str, Any] = {"x_title": axis, "ticks": ticks}
    heading = f"mRI by {axis}"
    tuned = rows[(rows["key"] == FINE_TUNE) & (rows["rest"] == "") & (rows["value"] < math.inf)]
    for point in tables.rows(tuned.sort_values("value", kind="stable")[:1]):
        heading = (
            f"{at.format(point.value)}, fine-tuning{results.of(point.model)} has an mRI of "
            f"{signed(point.mRI_pts)} points "
            f"(95% interval {ends(point.mRI_low, point.mRI_high)})"
        )
    return Section(
        name,
        heading,
        f"Training on a subset ({axis}) has as many epochs as on all images, so it takes fewer "
        "steps. With the same seed, smaller subsets are contained in larger ones. The evaluated "
        f"images are the same.{claim}",
        figures=by_model(
            results,
            f"{name} mRI",
            f"mRI by {axis}, with 95% intervals",
            drawn,
            ("mRI_pts", "method", "value"),
            lambda rows: charts.curve(rows, "x", "mRI_pts", "method", **options),
        ),
        tables=[
            Table(
                name,
                f"mRI in points, and accuracy on the downstream dataset if evaluated, by {axis}.",
                data,
            )
        ],
    )


def points(results: Results, key: str) -> pandas.DataFrame:
    """The shown arms whose setting contains the key, by method and value: the columns of
    `Results.arms`, `method` without the key, value, and rest, the other varied keys.
    `dataset.shots=0`, which means all images, becomes infinite."""
    shown = results.shown
    value = shown["arm"].map(lambda arm: results.setting(arm).get(key)).astype(float)
    if key == "dataset.shots":
        value = value.replace(0, math.inf)
    rows = shown.assign(value=value).dropna(subset="value")
    arms = [results.grid.arms[arm] for arm in rows["arm"]]
    others = [arm._replace(setting=arm.setting.without(key)) for arm in arms]
    rows["rest"] = [str(arm.setting) for arm in others]
    rows["method"] = [title(arm, results.record.methods) for arm in others]
    order = {name: list(rows[name]) for name in ("model", "method")}
    return tables.ordered(rows, **order, value=sorted(rows["value"]))


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
    ticks = {step: f"{step:,.0f}" for step in sorted(set(steps))} | {X_OF_STEP_0: "pre"}
    options: dict[str, Any] = {"x_title": "optimizer step", "ticks": ticks}
    claims = pandas.DataFrame(columns=["holds"])
    if rising := {arm: claim for arm, (_, claim) in made.items() if len(claim)}:
        units = {name: f"{name}_pct" for name in ("peak_ood", "saturation_ood")}
        claims = pandas.concat(rising, names=ARM).reset_index(ARM)
        claims = claims.rename(columns=units | {"fall": "fall_pts"})
    return Section(
        "dynamics",
        "Robustness falls before downstream accuracy saturates in "
        f"{int(claims['holds'].sum())} of {counted('row', len(made))}",
        "Means over the downstream datasets. Downstream accuracy saturates at the first step with "
        "95% of its total rise, if it rises. Robustness falls before that if OOD accuracy at an "
        "earlier step is significantly higher, by an interval that is simultaneous for all earlier "
        "steps.",
        figures=by_model(
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
                "Steps at which robustness peaks and downstream accuracy saturates; fall: OOD "
                "accuracy at the best earlier step minus that at saturation, in points.",
                claims,
            )
        ]
        * bool(rising),
    )


def barrier(results: Results) -> Section | None:
    """None if no weights are interpolated between two endpoints."""
    data = _barriers(results)
    if data.empty:
        return None
    shown = {words: rounded(data[name].max()) for name, words in BARRIERS.items() if name in data}
    most = listed([f"{points} points on {words}" for words, points in shown.items()])
    heading = f"Interpolated models fall at most {most} below the line between both endpoints"
    if not any(map(float, shown.values())):
        heading = "No interpolated model falls below the line between both endpoints"
    return Section(
        "barrier",
        heading,
        "The barrier is the largest amount, over the evaluated alphas, by which accuracy falls "
        "below the straight line between both endpoints (Entezari et al. 2022). As the largest of "
        "several differences, it is biased upwards on few images.",
        tables=[Table("barrier", "Barrier in points, by downstream dataset.", data)],
    )


def _barriers(results: Results) -> pandas.DataFrame:
    """One row per curve and downstream dataset."""
    cells, rows = results.grid.cells, []
    on_downstream = cells[cells["downstream"] == cells["evaluated_on"]]
    accuracies = {
        name: of.groupby(["arm", "downstream"])["accuracy"].mean()
        for name, of in zip(BARRIERS, (on_downstream, results.grid.ri_cells), strict=True)
    }
    mixed = results.arms[results.arms["alpha"].notna()]
    for (model, *_), curve in mixed.groupby(["model", "key", "variant", "setting"], sort=False):
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
