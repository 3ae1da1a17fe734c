"""Accuracy against what varies: steps, images a class, portions of a set, mixed weights."""

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
    "barrier_on_downstream_set_pts": "the set fine-tuned on",
    "barrier_on_other_sets_pts": "the other sets",
}


def shots(results: Results) -> Section | None:
    """Fine-tuning on K images a class."""
    claim = " The slides say that robustness collapses even at one (of OpenAI and LAION-2B)."
    return _varied(results, "dataset.shots", "shots", "images a class", "With K = {:g}", claim)


def portions(results: Results) -> Section | None:
    """Fine-tuning on a portion of a training set."""
    axis, at = "portion of the training images", "On a portion of {:g}"
    return _varied(results, "dataset.portion", "portions", axis, at, "")


def _varied(
    results: Results, key: str, name: str, axis: str, at: str, claim: str
) -> Section | None:
    """Every method against a key, or None where the campaign does not vary it."""
    rows = points(results, key)
    if rows.empty:
        return None
    texts = [f"{x:g}" if math.isfinite(x) else "all" for x in rows["value"]]
    numbers = [name for name in NUMBERS if name in rows]
    data = rows.assign(value=texts)[["model", "method", "value", *numbers]]
    # A logarithmic axis has no place for "all": it stands a doubling after the largest number.
    largest = max((x for x in rows["value"] if math.isfinite(x)), default=1.0)
    drawn = data.assign(x=rows["value"].clip(upper=2 * largest))
    ticks = dict(sorted(zip(drawn["x"], texts, strict=True)))
    options: dict[str, Any] = {"x_title": axis, "ticks": ticks}
    heading = f"What the {axis} do to robustness"
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
        f"Trained on a part of the set fine-tuned on ({axis}), for as many epochs as on all of it, "
        "so in fewer steps. A smaller part is within a larger one of the same seed. Images that "
        f"are evaluated on stay the same.{claim}",
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
                "mRI in points, and accuracy on the set fine-tuned on where that is evaluated, by "
                f"{axis}.",
                data,
            )
        ],
    )


def points(results: Results, key: str) -> pandas.DataFrame:
    """The arms that tables show whose setting holds the key, by method and then by its value: the
    columns of `Results.arms`, `method` without the key, value, and rest, what else varies.
    `dataset.shots=0`, which is all images, is infinite."""
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
        "Means over the sets fine-tuned on. Downstream accuracy saturates at the first step with "
        "95% of its total rise, if it rises. Robustness falls before that where OOD accuracy at an "
        "earlier step is higher, by an interval that holds for all earlier steps together and lies "
        "above 0.",
        figures=by_model(
            results,
            "dynamics",
            "Accuracy in percent against the optimizer step, on a logarithmic axis, with 95% "
            "intervals; pre: the pre-trained model",
            points.drop(columns="variant"),
            ("accuracy_pct", "method", "quantity"),
            lambda rows: charts.curve(
                rows, "at", "accuracy_pct", "quantity", facet="method", **options
            ),
        ),
        tables=[
            Table(
                "dynamics-claims",
                "When robustness peaks and when downstream accuracy saturates, in optimizer steps; "
                "fall: OOD accuracy at the best earlier step less that at saturation, in points.",
                claims,
            )
        ]
        * bool(rising),
    )


def barrier(results: Results) -> Section | None:
    """None where no weights are interpolated from one end to the other."""
    data = _barriers(results)
    if data.empty:
        return None
    shown = {words: rounded(data[name].max()) for name, words in BARRIERS.items() if name in data}
    most = listed([f"{points} points on {words}" for words, points in shown.items()])
    heading = f"Interpolated weights fall at most {most} below the line between both models"
    if not any(map(float, shown.values())):
        heading = "No interpolated weights fall below the line between both models"
    return Section(
        "barrier",
        heading,
        "The barrier is the largest distance, over the alphas that were evaluated, from accuracy "
        "up to the straight line between both models, in points (Entezari et al. 2022). It is the "
        "largest of several differences, so chance on few images raises it.",
        tables=[Table("barrier", "By set fine-tuned on: the barrier in points.", data)],
    )


def _barriers(results: Results) -> pandas.DataFrame:
    """A row a curve and set fine-tuned on."""
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
