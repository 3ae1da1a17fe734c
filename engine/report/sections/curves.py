"""Accuracy against what varies: optimizer steps, images a class, portions of a training set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas

from engine.measures import dynamics, tables
from engine.measures.rows import Arm
from engine.report import charts
from engine.report.results import FINE_TUNE, Results
from engine.report.section import Figure, Section, Table
from engine.report.text import ends, rounded, signed, slug

LABELS = {"downstream": "set fine-tuned on", "ood": "other sets", "upstream": "upstream set"}
PRE_TRAINED = 0.5  # where step 0 stands on an axis of logarithms
MRI, DOWNSTREAM = "mRI_pts", "on_downstream_set_pct"


@dataclass(frozen=True)
class Varied:
    """A key that a campaign varies, and the words for it.

    name: of the section and its files. axis: the title of the x axis. at: a value in a sentence,
    as in `at {value} image a class`. claim: what the sources say of the smallest value.
    """

    key: str
    name: str
    heading: str
    text: str
    axis: str
    at: str
    claim: str


SHOTS = Varied(
    "dataset.shots",
    "shots",
    "Images a class",
    "Each method was trained on K images a class of the set fine-tuned on, for as many epochs as "
    "on all of it, so in fewer steps. A smaller K is a part of a larger one of the same seed. "
    "Images that are evaluated on stay the same.",
    "images a class",
    "With K = {value}",
    "The slides say that robustness collapses even with one image a class (of OpenAI and LAION-2B)",
)
PORTIONS = Varied(
    "dataset.portion",
    "portions",
    "Portions of the training set",
    "Each method was trained on a portion of each class of the set fine-tuned on, for as many "
    "epochs as on all of it, so in fewer steps. A smaller portion is a part of a larger one of the "
    "same seed. Images that are evaluated on stay the same.",
    "portion of the training images",
    "On a portion of {value}",
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
    methods = results.record.methods
    rest = [
        ",".join(word for word in setting.split(",") if not word.startswith(f"{key}="))
        for setting in rows["setting"]
    ]
    rows = rows.assign(rest=rest)
    rows["method"] = [
        ", ".join(filter(None, (_title(row.key, row.variant, methods), row.rest)))
        for row in tables.rows(rows)
    ]
    place = rows.groupby(["model", "method"], sort=False).ngroup()
    return rows.assign(place=place).sort_values(["place", "value"]).drop(columns="place")


def _title(key: str, variant: str, methods: dict[str, str]) -> str:
    title = methods.get(key, key)
    return title if variant in ("", "canonical") else f"{title} ({variant})"


def _varied(results: Results, varied: Varied) -> Section | None:
    """Curves of every method against the key, or None where the campaign does not vary it."""
    rows = points(results, varied.key)
    if rows.empty:
        return None
    largest = max((x for x in rows["value"] if math.isfinite(x)), default=1.0)
    names = ["model", "method", "value", MRI, "mRI_low", "mRI_high", DOWNSTREAM]
    names += ["on_downstream_set_low", "on_downstream_set_high"]
    texts = [f"{x:g}" if math.isfinite(x) else "all" for x in rows["value"]]
    data = rows.assign(value=texts)[[name for name in names if name in rows]]
    # A logarithmic axis has no place for "all": it stands a doubling after the largest number.
    drawn = data.assign(x=[x if math.isfinite(x) else 2 * largest for x in rows["value"]])
    judged = DOWNSTREAM in data
    statements = _statements(rows, varied)
    return Section(
        varied.name,
        varied.heading,
        varied.text,
        statements,
        [
            figure
            for model, of_model in drawn.groupby("model", sort=False)
            for figure in _figures(results, str(model), of_model, varied)
        ],
        [
            Table(
                varied.name,
                f"mRI in points{' and accuracy on the set fine-tuned on, in percent,' * judged} by "
                f"{varied.axis}, with 95% intervals.",
                data,
            )
        ],
    )


def _statements(rows: pandas.DataFrame, varied: Varied) -> list[str]:
    """The claim about the smallest value, for each pre-trained model that plain FT was run from."""
    tuned = rows[(rows["key"] == FINE_TUNE) & (rows["rest"] == "")].sort_values("value")
    statements = []
    for point in tables.rows(tuned.drop_duplicates(["model", "variant"])):
        if not math.isfinite(point.value):
            continue
        holds = point.mRI_high < 0
        where = "below 0" if holds else "above 0" if point.mRI_low > 0 else "not surely below 0"
        on_target = ""
        if DOWNSTREAM in rows:
            accuracy = rounded(getattr(point, DOWNSTREAM))
            on_target = f"; accuracy on the set fine-tuned on is {accuracy}%"
        statements.append(
            f"{varied.claim}: {str(holds).lower()} for {point.model} in this run. "
            f"{varied.at.format(value=f'{point.value:g}')}, fine-tuning has an mRI of "
            f"{signed(point.mRI_pts)} (95% interval {ends(point.mRI_low, point.mRI_high)}), which "
            f"is {where}{on_target}."
        )
    return statements


def _figures(results: Results, model: str, data: pandas.DataFrame, varied: Varied) -> list[Figure]:
    """mRI and downstream accuracy of a pre-trained model against the key."""
    figures, all_images = [], "all" in set(data["value"])
    ticks = dict(sorted(zip(data["x"], data["value"], strict=True)))
    for quantity, title in ((MRI, "mRI"), (DOWNSTREAM, "accuracy on the set fine-tuned on")):
        if quantity not in data:
            continue
        write = signed if quantity == MRI else rounded
        first_last = data.groupby("method", sort=False)[quantity].agg(["first", "last"])
        numbers = "; ".join(
            f"{method} from {write(a)} to {write(b)}" for method, a, b in first_last.itertuples()
        )
        figures.append(
            Figure(
                slug(varied.name, quantity.rpartition("_")[0], model),
                f"{title} by {varied.axis}{results.of(model)}, a line a method, with 95% "
                "intervals as bands." + " “all” is every training image." * all_images,
                f"{title} against {varied.axis}{results.of(model)}: {numbers}.",
                data,
                charts.curve(
                    data, "x", quantity, "method", x_title=varied.axis, ticks=ticks, log=True
                ),
            )
        )
    return figures


def during_training(results: Results) -> Section | None:
    """Accuracy during fine-tuning, and the slides' claim that robustness falls before downstream
    accuracy saturates."""
    made = dynamics.curves(results.grid)
    if not made:
        return None
    methods = results.record.methods
    points = pandas.concat(
        [_named(arm, methods, curves) for arm, curves, _ in made], ignore_index=True
    )
    rows = [_named(arm, methods, claim) for arm, _, claim in made if len(claim)]
    claims = pandas.concat(rows) if rows else pandas.DataFrame()
    holds = int(claims["holds"].sum()) if len(claims) else 0
    names = {f"{name}_ood": f"{name}_ood_pct" for name in ("peak", "saturation")}
    columns = {"low": "accuracy_low", "high": "accuracy_high", "value": "accuracy_pct"}
    points = points.rename(columns=columns).assign(
        quantity=points["quantity"].map(LABELS), at=points["step"].clip(lower=PRE_TRAINED)
    )
    return Section(
        "dynamics",
        f"Robustness falls before downstream accuracy saturates in {holds} of {len(made)}",
        "Means over the sets fine-tuned on. Downstream accuracy saturates at the first step with "
        "95% of its total rise. Robustness falls before that where OOD accuracy at an earlier step "
        "is higher, by an interval that holds for all earlier steps together and lies above 0.",
        [
            _claim(f"{_title(arm.method, arm.variant, methods)} of {arm.model}", claim)
            for arm, _, claim in made
        ],
        [
            _training_figure(results, str(model), of_model)
            for model, of_model in points.groupby("model", sort=False)
        ],
        [
            Table(
                "dynamics-claims",
                "When robustness peaks and when downstream accuracy saturates, in optimizer steps; "
                "fall: OOD accuracy at the best earlier step less that at saturation, in points.",
                claims.rename(columns={"fall": "fall_pts", **names}),
            )
        ]
        if len(claims)
        else [],
    )


def _named(arm: Arm, methods: dict[str, str], table: pandas.DataFrame) -> pandas.DataFrame:
    method = _title(arm.method, arm.variant, methods)
    named = table.assign(model=arm.model, method=method, variant=arm.variant)
    return named[["model", "method", "variant", *table.columns]]


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


def _training_figure(results: Results, model: str, points: pandas.DataFrame) -> Figure:
    data = points.drop(columns=["model", "variant"])
    texts = []
    for method, rows in data.groupby("method", sort=False):
        ends_of = rows.groupby("quantity", sort=False)["accuracy_pct"].agg(["first", "last"])
        numbers = (
            f"{label} {rounded(a)}% before and {rounded(b)}% after"
            for label, a, b in ends_of.itertuples()
        )
        texts.append(f"{method}: {', '.join(numbers)}")
    ticks = {max(step, PRE_TRAINED): f"{step:,}" for step in sorted(set(data["step"]))}
    ticks[PRE_TRAINED] = "pre"
    return Figure(
        slug("dynamics", *[model] * (len(results.models) > 1)),
        f"Accuracy{results.of(model)} in percent against the optimizer step, on a logarithmic "
        "axis; pre: the pre-trained model. Bands are 95% intervals.",
        f"Mean accuracy{results.of(model)} during fine-tuning. {'; '.join(texts)}.",
        data,
        charts.curve(
            data,
            "at",
            "accuracy_pct",
            "quantity",
            x_title="optimizer step",
            ticks=ticks,
            log=True,
            facet="method",
        ),
    )
