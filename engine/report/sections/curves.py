"""Accuracy against what varies: optimizer steps, images a class, portions of a training set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from engine.measures import dynamics, tables
from engine.measures.tables import groups
from engine.report import charts
from engine.report.results import FINE_TUNE, Results, title
from engine.report.section import Figure, Section, Table
from engine.report.text import ends, rounded, signed, slug

LABELS = {"downstream": "set fine-tuned on", "ood": "other sets", "upstream": "upstream set"}
PRE_TRAINED = 0.5  # where step 0 stands on an axis of logarithms
MRI, DOWNSTREAM = "mRI_pts", "on_downstream_set_pct"


@dataclass(frozen=True)
class Varied:
    """A key that a campaign varies, and the words for it.

    name: of the section and its files. part: what is trained on. axis: the title of the x axis. at:
    a value in a sentence. claim: what the sources say of the smallest value.
    """

    key: str
    name: str
    part: str
    axis: str
    at: str
    claim: str


SHOTS = Varied(
    "dataset.shots",
    "shots",
    "K images a class",
    "images a class",
    "With K = {value:g}",
    "The slides say that robustness collapses even with one image a class (of OpenAI and LAION-2B)",
)
PORTIONS = Varied(
    "dataset.portion",
    "portions",
    "a portion of each class",
    "portion of the training images",
    "On a portion of {value:g}",
    "Already the smallest portion costs robustness",
)


def shots(results: Results) -> Section | None:
    """Fine-tuning on K images a class."""
    return _varied(results, SHOTS)


def portions(results: Results) -> Section | None:
    """Fine-tuning on a portion of a training set."""
    return _varied(results, PORTIONS)


def value_of(setting: str, key: str) -> float | None:
    """The key's value in an arm's setting, None where that does not hold it; infinite for
    `dataset.shots=0`, which is all images."""
    words = dict(word.split("=", 1) for word in setting.split(",") if "=" in word)
    if key not in words:
        return None
    value = float(words[key])
    return math.inf if (key, value) == ("dataset.shots", 0) else value


def points(results: Results, key: str) -> pandas.DataFrame:
    """The arms that tables show whose setting holds the key, by method and then by its value: the
    columns of `Results.arms`, `method` without the key, value, and rest, what else varies."""
    shown = results.shown
    values = [value_of(setting, key) for setting in shown["setting"]]
    rows = shown.assign(value=pandas.Series(values, shown.index, float)).dropna(subset="value")
    rows["rest"] = [
        ",".join(word for word in setting.split(",") if not word.startswith(f"{key}="))
        for setting in rows["setting"]
    ]
    rows["method"] = [
        title(results.grid.arms[arm]._replace(setting=rest), results.record.methods)
        for arm, rest in zip(rows["arm"], rows["rest"], strict=True)
    ]
    order = {name: list(rows[name]) for name in ("model", "method")}
    return tables.ordered(rows, **order, value=sorted(rows["value"]))


def _varied(results: Results, varied: Varied) -> Section | None:
    """Curves of every method against the key, or None where the campaign does not vary it."""
    rows = points(results, varied.key)
    if rows.empty:
        return None
    quantities = [name for name in (MRI, DOWNSTREAM) if name in rows]
    names = ["model", "method", "value", MRI, "mRI_low", "mRI_high", DOWNSTREAM]
    names += ["on_downstream_set_low", "on_downstream_set_high"]
    texts = [f"{x:g}" if math.isfinite(x) else "all" for x in rows["value"]]
    data = rows.assign(value=texts)[[name for name in names if name in rows]]
    # A logarithmic axis has no place for "all": it stands a doubling after the largest number.
    largest = max((x for x in rows["value"] if math.isfinite(x)), default=1.0)
    drawn = data.assign(x=rows["value"].clip(upper=2 * largest))
    tuned = rows[(rows["key"] == FINE_TUNE) & (rows["rest"] == "")].sort_values("value")
    tuned = tuned[tuned["value"] < math.inf].drop_duplicates(["model", "variant"])
    heading = f"What {varied.axis} do to robustness"
    for point in tables.rows(tuned[:1]):
        at = varied.at.format(value=point.value)
        heading = f"{at}, fine-tuning has an mRI of {signed(point.mRI_pts)} points"
    return Section(
        varied.name,
        heading,
        f"Each method was trained on {varied.part} of the set fine-tuned on, for as many epochs as "
        "on all of it, so in fewer steps. A smaller part is within a larger one of the same seed. "
        "Images that are evaluated on stay the same.",
        [_claim_of_smallest(point, varied) for point in tables.rows(tuned)],
        [
            _figure(results, model, of_model, varied, quantity)
            for model, of_model in groups(drawn, "model")
            for quantity in quantities
        ],
        [
            Table(
                varied.name,
                f"mRI in points{' and downstream accuracy in percent' * (len(quantities) > 1)} by "
                f"{varied.axis}, with 95% intervals.",
                data,
            )
        ],
    )


def _claim_of_smallest(point: Any, varied: Varied) -> str:
    """Whether plain fine-tuning at the smallest value loses robustness."""
    row = point._asdict()
    low, high = row["mRI_low"], row["mRI_high"]
    where = "below 0" if high < 0 else "above 0" if low > 0 else "not surely below 0"
    accuracy = row.get(DOWNSTREAM)
    on_target = (
        "" if accuracy is None else (f"; accuracy on the set fine-tuned on is {rounded(accuracy)}%")
    )
    return (
        f"{varied.claim}: {str(high < 0).lower()} for {row['model']} in this run. "
        f"{varied.at.format(value=row['value'])}, fine-tuning has an mRI of "
        f"{signed(row[MRI])} (95% interval {ends(low, high)}), which is {where}{on_target}."
    )


def _figure(
    results: Results, model: str, data: pandas.DataFrame, varied: Varied, quantity: str
) -> Figure:
    """mRI or downstream accuracy of a pre-trained model against the key."""
    write, what = signed, "mRI"
    if quantity == DOWNSTREAM:
        write, what = rounded, "accuracy on the set fine-tuned on"
    numbers = _first_and_last(data, "method", quantity, "{} from {} to {}", write)
    everything = " “all” is every training image." * ("all" in set(data["value"]))
    ticks = dict(sorted(zip(data["x"], data["value"], strict=True)))
    return Figure(
        slug(varied.name, quantity.rpartition("_")[0], model),
        f"{what} by {varied.axis}{results.of(model)}, with 95% intervals.{everything}",
        f"{what} against {varied.axis}{results.of(model)}: {'; '.join(numbers)}.",
        data,
        charts.curve(data, "x", quantity, "method", x_title=varied.axis, ticks=ticks, log=True),
    )


def _first_and_last(
    data: pandas.DataFrame, by: str, name: str, words: str, write: Callable[[float], str]
) -> list[str]:
    """The ends of each curve, in words."""
    ends_of = data.groupby(by, sort=False)[name].agg(["first", "last"])
    return [words.format(key, write(a), write(b)) for key, a, b in ends_of.itertuples()]


def during_training(results: Results) -> Section | None:
    """Accuracy during fine-tuning, and the slides' claim that robustness falls before downstream
    accuracy saturates."""
    made = dynamics.curves(results.grid)
    if not made:
        return None

    def named(tables_of: Sequence[pandas.DataFrame]) -> pandas.DataFrame:
        parts = [
            table.assign(
                model=arm.model, method=title(arm, results.record.methods), variant=arm.variant
            )[["model", "method", "variant", *table.columns]]
            for (arm, _, _), table in zip(made, tables_of, strict=True)
            if len(table)
        ]
        return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()

    claims = named([claim for _, _, claim in made])
    points = named([curves for _, curves, _ in made]).rename(
        columns={"low": "accuracy_low", "high": "accuracy_high", "value": "accuracy_pct"}
    )
    points["quantity"] = points["quantity"].map(LABELS)
    points["at"] = points["step"].clip(lower=PRE_TRAINED)
    holds = int(claims["holds"].sum()) if len(claims) else 0
    units = {"fall": "fall_pts"}
    units |= {f"{name}_ood": f"{name}_ood_pct" for name in ("peak", "saturation")}
    return Section(
        "dynamics",
        f"Robustness falls before downstream accuracy saturates in {holds} of {len(made)}",
        "Means over the sets fine-tuned on. Downstream accuracy saturates at the first step with "
        "95% of its total rise. Robustness falls before that where OOD accuracy at an earlier step "
        "is higher, by an interval that holds for all earlier steps together and lies above 0.",
        [
            _claim(f"{title(arm, results.record.methods)} of {arm.model}", claim)
            for arm, _, claim in made
        ],
        [_training(results, *of) for of in groups(points, "model")],
        [
            Table(
                "dynamics-claims",
                "When robustness peaks and when downstream accuracy saturates, in optimizer steps; "
                "fall: OOD accuracy at the best earlier step less that at saturation, in points.",
                claims.rename(columns=units),
            )
        ][: len(claims)],
    )


def _claim(name: str, claim: pandas.DataFrame) -> str:
    if claim.empty:
        return f"{name}: downstream accuracy does not rise, so that it cannot saturate."
    row = claim.iloc[0]
    low, high = (signed(-end) for end in (row["fall_high"], row["fall_low"]))
    return (
        f"{name}: OOD accuracy is highest {_at(row['peak'])} ({rounded(row['peak_ood'])}%), "
        f"downstream accuracy reaches 95% of its rise {_at(row['saturation'])}. Robustness falls "
        f"before downstream accuracy saturates: {str(row['holds']).lower()} for this run; its "
        f"highest earlier value is {_at(row['best'])}, from where to saturation OOD accuracy "
        f"changes by {signed(-row['fall'])} points [{low}, {high}]."
    )


def _at(step: int) -> str:
    return f"at step {step}" if step else "before fine-tuning"


def _training(results: Results, model: str, points: pandas.DataFrame) -> Figure:
    data, words = points.drop(columns=["model", "variant"]), "{} {}% before and {}% after"
    texts = [
        f"{method}: {', '.join(_first_and_last(rows, 'quantity', 'accuracy_pct', words, rounded))}"
        for method, rows in data.groupby("method", sort=False)
    ]
    ticks = {max(step, PRE_TRAINED): f"{step:,}" for step in sorted(set(data["step"]))}
    ticks[PRE_TRAINED] = "pre"
    options = {"x_title": "optimizer step", "ticks": ticks, "log": True, "facet": "method"}
    return Figure(
        slug("dynamics", *[model] * (len(results.models) > 1)),
        f"Accuracy{results.of(model)} in percent against the optimizer step, on a logarithmic "
        "axis, with 95% intervals; pre: the pre-trained model.",
        f"Mean accuracy{results.of(model)} during fine-tuning. {'; '.join(texts)}.",
        data,
        charts.curve(data, "at", "accuracy_pct", "quantity", **options),
    )
