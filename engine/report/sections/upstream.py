"""Fine-tuning on the upstream set itself, beside the published table of the same."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import pandas

from engine.measures.tables import extremes
from engine.report import charts
from engine.report.results import FINE_TUNE, Results, published, slides
from engine.report.section import Figure, Section, Table
from engine.report.text import ends, signed, slug

NAMES = ["model", "method", "variant", "evaluated_on", "before_pct", "accuracy_pct"]
NAMES += ["accuracy_low", "accuracy_high", "change_pts"]


def section(results: Results) -> Section | None:
    """None where no model was fine-tuned on the upstream set."""
    upstream = results.record.upstream
    cells = results.cells[results.cells["downstream"] == upstream]
    if cells.empty:
        return None
    data = pandas.concat([_rows(results, model, cells) for model in dict.fromkeys(cells["model"])])
    plain = data[(data["key"] == FINE_TUNE) & (data["setting"] == "")]
    numbers = data[[*NAMES, *(name for name in map(str, data) if name.startswith("published_"))]]
    models = list(dict.fromkeys(data["model"]))
    return Section(
        "upstream",
        f"Fine-tuned on {upstream}",
        f"Accuracy in percent after fine-tuning on {upstream}, and its change in points. The "
        "published numbers are the slides', where they hold the pre-trained model.",
        [
            _statement(results, str(model), rows)
            for (model, _), rows in plain.groupby(["model", "arm"], sort=False)
        ],
        [_figure(results, model, data[data["model"] == model]) for model in models],
        [
            Table(
                "upstream",
                f"Fine-tuned on {upstream}: accuracy with its 95% interval, and the change.",
                numbers.dropna(axis=1, how="all"),
            )
        ],
    )


def _rows(results: Results, model: str, cells: pandas.DataFrame) -> pandas.DataFrame:
    """A row an arm, best mRI first, and set, the upstream set first."""
    ranked = results.ranked(model)
    names = [results.record.upstream, *results.sets(model)]
    cells = cells[cells["arm"].isin(ranked["arm"]) & cells["evaluated_on"].isin(names)]
    place = {name: k for k, name in enumerate(names)}
    rank = {arm: k for k, arm in enumerate(ranked["arm"])}
    keys = {"a": cells["arm"].map(rank), "b": cells["evaluated_on"].map(place)}
    data = cells.assign(key=cells["arm"].map(ranked.set_index("arm")["key"]), **keys)
    data = data.sort_values(["a", "b"]).drop(columns=["a", "b"])
    known = _published(model)
    plain = (data["key"] == FINE_TUNE) & (data["setting"] == "")
    pairs = [
        known.get(name, (None, None)) if is_plain else (None, None)
        for name, is_plain in zip(data["evaluated_on"], plain, strict=True)
    ]
    accuracy = pandas.Series([after for after, _ in pairs], data.index, float)
    before = pandas.Series([before for _, before in pairs], data.index, float)
    return data.assign(published_accuracy_pct=accuracy, published_change_pts=accuracy - before)


def _published(model: str) -> dict[str, tuple[float, float]]:
    """By set, the published accuracy after fine-tuning on IN-1K's validation set, and before."""
    entry = published(model)
    before, after = entry.get("before", {}), entry.get("fine_tuned_on_val", {})
    return {name: (after[name], before[name]) for name in after if name in before}


def _statement(results: Results, model: str, rows: pandas.DataFrame) -> str:
    """What fine-tuning on the upstream set does to the other sets, and what the slides show."""
    upstream, sets, known = results.record.upstream, results.sets(model), _published(model)
    change = rows.set_index("evaluated_on")["change_pts"]
    ri = results.ri[(results.ri["arm"] == rows["arm"].iloc[0])]
    ri = ri[ri["downstream"] == upstream]
    low, high = (float(ri[end].iloc[0]) for end in ("RI_low", "RI_high")) if len(ri) else (0, 0)
    interval = f" (95% interval {ends(low, high)})" if len(ri) else ""
    text = (
        f"Fine-tuning {model} on {upstream} changes accuracy there by {signed(change[upstream])} "
        f"points, and on the {len(sets)} other sets by {signed(change[sets].mean())}{interval} in "
        "the mean."
    )
    if not all(name in known for name in sets):
        return f"{text} {_on_slides()}"
    there = fmean(known[name][0] - known[name][1] for name in sets)
    agrees = high < 0 if there < 0 else low > 0
    return (
        f"{text} On the slides it is {signed(there)}: a {'loss' if there < 0 else 'gain'} in "
        f"this run too: {str(agrees).lower()}."
    )


def _on_slides() -> str:
    """The same changes for every pre-training on the slides, in a sentence."""
    source = slides()
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


def _figure(results: Results, model: str, data: pandas.DataFrame) -> Figure:
    upstream = results.record.upstream
    least, most = extremes(data, "change_pts")
    shown = data[NAMES].drop(columns=["model", "variant"])
    return Figure(
        slug("upstream", model),
        f"Change in accuracy on each set, in points, after fine-tuning on {upstream}"
        f"{results.of(model)}: blue is gain, orange loss.",
        f"Changes after fine-tuning on {upstream}{results.of(model)}: from "
        f"{signed(least['change_pts'])} ({least['method']} on {least['evaluated_on']}) to "
        f"{signed(most['change_pts'])} ({most['method']} on {most['evaluated_on']}).",
        shown,
        charts.heat(shown, "evaluated_on", "method", "change_pts"),
    )
