"""Fine-tuning on the upstream set itself, beside the published table of the same."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import pandas

from engine import recipe
from engine.measures.standings import Line, Standings, signed
from engine.report import display, frames, specs
from engine.report.section import Figure, Section, Table
from engine.report.tables import Results

FINE_TUNE = "fine_tune"
TOOLTIP = [
    specs.field("method"),
    specs.field("evaluated_on", "evaluated on"),
    specs.field("before", "before, %", ".2f"),
    specs.field("accuracy", "after, %", ".2f"),
    specs.field("change", "change, points", "+.2f"),
]


def section(results: Results) -> Section | None:
    """None where no model was fine-tuned on the upstream set."""
    upstream = results.record.upstream
    lines = [(model, line) for model, line in results.lines if upstream in line.after]
    if not lines:
        return None
    data = pandas.DataFrame([row for model, line in lines for row in _rows(results, model, line)])
    return Section(
        "upstream",
        f"Fine-tuned on {upstream}",
        f"Accuracy in percent after fine-tuning on {upstream}, and its change in points. The "
        "published numbers are the slides', where they hold the pre-trained model.",
        statements=[_statement(results, *pair) for pair in lines if _is_plain(pair[1])],
        figures=[
            _figure(results, model, data[data["model"] == model.model])
            for model in {model.model: model for model, _ in lines}.values()
        ],
        tables=[
            Table(
                "upstream",
                f"Fine-tuned on {upstream}: accuracy with its 95% interval, and the change.",
                data,
                {
                    name: kind
                    for name, kind in {
                        "before": "plain1",
                        "accuracy": "span",
                        "change": "signed1",
                        "published_accuracy": "plain1",
                        "published_change": "signed1",
                    }.items()
                    if name in data
                },
            )
        ],
    )


def _is_plain(line: Line) -> bool:
    return line.arm.method == FINE_TUNE and not line.arm.setting


def _rows(results: Results, model: Standings, line: Line) -> list[dict[str, Any]]:
    """A row a set, the upstream set first."""
    upstream, published = results.record.upstream, _published(model)
    rows = []
    for name in (upstream, *model.sets):
        accuracy, before = line.after[upstream][name], model.before[name]
        row = frames.of_line(model, line) | {
            "evaluated_on": name,
            "before": before,
            "accuracy": accuracy,
            **frames.ends(results, "accuracy", "accuracy", line.arm, upstream, name),
            "change": accuracy - before,
        }
        if _is_plain(line) and name in published:
            after, at_first = published[name]
            row |= {"published_accuracy": after, "published_change": after - at_first}
        rows.append(row)
    return rows


def _published(model: Standings) -> dict[str, tuple[float, float]]:
    """By set, the published accuracy after fine-tuning on IN-1K's validation set, and before."""
    reference = frames.reference(model)
    before = reference.get("before", {})
    after = reference.get("fine_tuned_on_val", {})
    return {name: (after[name], before[name]) for name in after if name in before}


def _statement(results: Results, model: Standings, line: Line) -> str:
    """What fine-tuning on the upstream set does to the other sets, and what the slides show."""
    upstream, published = results.record.upstream, _published(model)
    after = line.after[upstream]
    change = fmean(after[name] - model.before[name] for name in model.sets)
    ends = results.sure.interval("RI", line.arm, upstream)
    interval = f" (95% interval {display.range_text(*ends)})" if ends else ""
    text = (
        f"Fine-tuning {model.model} on {upstream} changes accuracy there by "
        f"{signed(after[upstream] - model.before[upstream])} points, and on the "
        f"{len(model.sets)} other sets by {signed(change)}{interval} in the mean."
    )
    if not all(name in published for name in model.sets):
        return f"{text} {_on_slides()}"
    slides = fmean(published[name][0] - published[name][1] for name in model.sets)
    agrees = ends is not None and (ends[1] < 0 if slides < 0 else ends[0] > 0)
    return (
        f"{text} On the slides it is {signed(slides)}: a {'loss' if slides < 0 else 'gain'} in "
        f"this run too: {str(agrees).lower()}."
    )


def _on_slides() -> str:
    """The same changes for every pre-training on the slides, in a sentence."""
    source = recipe.published()
    val, *others = source["sets"].values()
    there, elsewhere = {}, {}
    for label, model in source["models"].items():
        if after := model.get("fine_tuned_on_val"):
            changes = {name: after[name] - model["before"][name] for name in after}
            there[label] = changes[val]
            elsewhere[label] = fmean(changes[name] for name in others)
    return (
        f"On the slides, which do not have this model, accuracy on {val} changes by "
        f"{_from_to(there)}, and on the other sets by {_from_to(elsewhere)}, by pre-training."
    )


def _from_to(changes: Mapping[str, float]) -> str:
    least, most = min(changes, key=changes.__getitem__), max(changes, key=changes.__getitem__)
    return f"{signed(changes[least])} ({least}) to {signed(changes[most])} ({most})"


def _figure(results: Results, model: Standings, data: pandas.DataFrame) -> Figure:
    upstream = results.record.upstream
    least, most = (data.loc[getattr(data["change"], end)()] for end in ("idxmin", "idxmax"))
    return Figure(
        frames.slug("upstream", model.model),
        f"Change in accuracy on each set, in points, after fine-tuning on {upstream}"
        f"{frames.label(results, model)}: blue is gain, orange loss.",
        f"Changes after fine-tuning on {upstream}{frames.label(results, model)}: from "
        f"{least['change']:+.1f} ({least['method']} on {least['evaluated_on']}) to "
        f"{most['change']:+.1f} ({most['method']} on {most['evaluated_on']}).",
        data.drop(columns=["model", "variant"]),
        specs.heat_map(
            "evaluated_on",
            "method",
            "change",
            frames.scale_end(data["change"]),
            TOOLTIP,
            legend=True,
        ),
    )
