"""A report's numbers as tidy tables, which several sections draw and list."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas

from engine import recipe
from engine.measures.standings import Line, Standings

if TYPE_CHECKING:
    from engine.report.tables import Results


def of_line(model: Standings, line: Line) -> dict[str, Any]:
    """The columns that name a row of a table: model, method (its title) and variant."""
    return {"model": model.model, "method": line.title, "variant": line.arm.variant}


def ends(results: Results, name: str, *key: Any) -> dict[str, float]:
    """Columns NAME_low and NAME_high of `Certainty.interval(*key)`, if known."""
    known = results.sure.interval(*key)
    if known is None:
        return {}
    return dict(zip((f"{name}_low", f"{name}_high"), known, strict=True))


def ranking(results: Results) -> pandas.DataFrame:
    """A row a model and method, best mRI first: mRI and mean accuracies, with intervals.

    `on_downstream_set` is left out where the set fine-tuned on is not evaluated.
    """
    upstream = results.record.upstream
    rows = []
    for model, line in results.lines:
        mri = line.mri
        row = of_line(model, line) | {
            "mRI": mri.mri,
            "mRI_low": mri.mri_low,
            "mRI_high": mri.mri_high,
            **({} if line.downstream is None else {"on_downstream_set": line.downstream}),
            "on_other_sets": line.ood,
            "change_upstream": line.upstream,
            **ends(results, "change_upstream", "change", line.arm, "", upstream),
        }
        if published := published_mri(model):
            row["published_mRI"] = published.get(line.arm.method)
        rows.append(row)
    return pandas.DataFrame(rows)


def cells(results: Results) -> pandas.DataFrame:
    """A row a model, method, set fine-tuned on and set evaluated on: accuracy in percent before and
    after, with its interval, and the change in points."""
    rows = [
        of_line(model, line)
        | {
            "downstream": downstream,
            "evaluated_on": name,
            "before": model.before[name],
            "accuracy": accuracy,
            **ends(results, "accuracy", "accuracy", line.arm, downstream, name),
            "change": accuracy - model.before[name],
        }
        for model in results.models
        for line in model.lines
        for downstream in model.downstreams
        for name, accuracy in in_order(model, line.after.get(downstream, {})).items()
    ]
    return pandas.DataFrame(rows)


def in_order(model: Standings, by_set: Mapping[str, float]) -> dict[str, float]:
    """The numbers in the order of the sets, then those of the upstream set."""
    return {name: by_set[name] for name in dict.fromkeys([*model.sets, *by_set]) if name in by_set}


def published_mri(model: Standings) -> Mapping[str, float]:
    """The published mRI by method. Nothing where ours is the mean over other columns: the published
    numbers are over `downstreams` sets, which are also those of RI."""
    if not model.is_square or len(model.sets) != recipe.published()["downstreams"]:
        return {}
    return reference(model).get("mri", {})


def reference(model: Standings) -> Mapping[str, Any]:
    """The published numbers of a pre-trained model, or nothing; accuracies by our names of sets.

    The model is known by its label on the slides, its timm name or its recipe's.
    """
    published = recipe.published()
    by_name = {
        name: entry
        for label, entry in published["models"].items()
        for name in (label, entry.get("timm"), entry.get("recipe"))
        if name
    }
    if model.model not in by_name:
        return {}
    entry = dict(by_name[model.model])
    for key in ("before", "fine_tuned_on_val"):
        accuracy = entry.get(key, {})
        entry[key] = {
            name: accuracy[label] for name, label in published["sets"].items() if label in accuracy
        }
    return entry


def chosen_on_own_set(results: Results) -> str:
    """A sentence that names the methods whose models were chosen by the very images that their
    accuracy on the set fine-tuned on is of; empty where there are none."""
    rows = [of for key, of in results.record.settings.items() if key.split(",")[0] == "Rows"]
    names = dict.fromkeys(
        str(results.record.methods.get(method, method))
        for by_method in rows
        for method, options in by_method.items()
        if "select=greedy" in str(options.get("options")).split(", ")
    )
    if not names:
        return ""
    return (
        f" {', '.join(names)}: chosen by accuracy on the images held out of the set fine-tuned on, "
        "so that its accuracy there is too good."
    )


def label(results: Results, model: Standings) -> str:
    """` of MODEL` where a report has several, for captions."""
    return f" of {model.model}" if len(results.models) > 1 else ""


def slug(*words: str) -> str:
    """Words as a file's name: letters, digits and single dashes."""
    return "-".join(part for word in words for part in _parts(word))


def where(data: pandas.DataFrame, **values: Any) -> pandas.DataFrame:
    """The rows with these values, by column."""
    for name, value in values.items():
        data = pandas.DataFrame(data[data[name] == value])
    return data


def extremes(data: pandas.DataFrame, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows with the least and with the greatest number in a column."""
    rows: list[Any] = data.dropna(subset=[name]).to_dict("records")
    return min(rows, key=lambda row: row[name]), max(rows, key=lambda row: row[name])


def scale_end(values: Iterable[float]) -> float:
    """End of a symmetric colour scale: the largest absolute value, rounded up to fives."""
    return max(1, math.ceil(max(map(abs, values), default=0.0) / 5)) * 5.0


def _parts(word: str) -> list[str]:
    plain = "".join(sign if sign.isascii() and sign.isalnum() else " " for sign in word.lower())
    return plain.split()
