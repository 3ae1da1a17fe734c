"""Fine-tuning on the upstream set itself, beside the published table of the same."""

from __future__ import annotations

from statistics import fmean

import pandas

from engine.measures.tables import groups, ordered
from engine.report import charts
from engine.report.columns import between
from engine.report.results import FINE_TUNE, Results, published
from engine.report.section import Figure, Section, Table
from engine.report.text import ends, signed, slug

NAMES = ["model", "method", "variant", "evaluated_on", "before_pct", "accuracy_pct"]
NAMES += ["accuracy_low", "accuracy_high", "change_pts"]
PUBLISHED = ["published_accuracy_pct", "published_change_pts"]


def section(results: Results) -> Section | None:
    """None where no model was fine-tuned on the upstream set."""
    upstream = results.record.upstream
    cells = results.cells[results.cells["downstream"] == upstream]
    if cells.empty:
        return None
    data = pandas.concat([_rows(results, model, cells) for model in dict.fromkeys(cells["model"])])
    plain = data[data["is_plain"]].groupby(["model", "arm"], sort=False)
    return Section(
        "upstream",
        f"Fine-tuned on {upstream}, accuracy changes by "
        f"{between(data, 'change_pts', 'method', 'evaluated_on')}",
        "Published numbers are the slides', where they hold the pre-trained model.",
        [_statement(results, str(model), rows) for (model, _), rows in plain],
        [_figure(results, *of) for of in groups(data, "model")],
        [
            Table(
                "upstream",
                f"Fine-tuned on {upstream}: accuracy in percent with its 95% interval, and its "
                "change in points.",
                data[[*NAMES, *PUBLISHED]].dropna(axis=1, how="all"),
            )
        ],
    )


def _rows(results: Results, model: str, cells: pandas.DataFrame) -> pandas.DataFrame:
    """A row an arm, best mRI first, and set, the upstream set first. is_plain: of fine-tuning as
    it was published."""
    ranked, known = results.ranked(model).set_index("arm"), _published(model)
    names = [results.record.upstream, *results.sets(model)]
    cells = cells[cells["arm"].isin(ranked.index) & cells["evaluated_on"].isin(names)]
    data = ordered(cells, arm=ranked.index, evaluated_on=names)
    is_plain = (data["arm"].map(ranked["key"]) == FINE_TUNE) & (data["setting"] == "")
    for k, name in enumerate(PUBLISHED):
        values = {on: numbers[k] for on, numbers in known.items()}
        data = data.assign(**{name: data["evaluated_on"].map(values).where(is_plain).astype(float)})
    return data.assign(is_plain=is_plain)


def _published(model: str) -> dict[str, tuple[float, float]]:
    """By set, the published accuracy after fine-tuning on IN-1K's validation set, and its
    change."""
    entry = published(model)
    before, after = entry.get("before", {}), entry.get("fine_tuned_on_val", {})
    return {name: (after[name], after[name] - before[name]) for name in after if name in before}


def _statement(results: Results, model: str, rows: pandas.DataFrame) -> str:
    """What fine-tuning on the upstream set does to the other sets, and what the slides show."""
    upstream, sets, known = results.record.upstream, results.sets(model), _published(model)
    change = rows.set_index("evaluated_on")["change_pts"]
    ri = results.ri[results.ri["arm"] == rows["arm"].iloc[0]]
    ri = ri.loc[ri["downstream"] == upstream, ["RI_low", "RI_high"]]
    low, high = ri.iloc[0] if len(ri) else (0.0, 0.0)
    interval = f" (95% interval {ends(low, high)})" if len(ri) else ""
    text = (
        f"Fine-tuning {model} on {upstream} changes accuracy there by {signed(change[upstream])} "
        f"points, and on the {len(sets)} other sets by {signed(change[sets].mean())}{interval} in "
        "the mean."
    )
    if not all(name in known for name in sets):
        return text
    there = fmean(known[name][1] for name in sets)
    agrees = high < 0 if there < 0 else low > 0
    return (
        f"{text} On the slides it is {signed(there)}: a {'loss' if there < 0 else 'gain'} in "
        f"this run too: {str(agrees).lower()}."
    )


def _figure(results: Results, model: str, data: pandas.DataFrame) -> Figure:
    shown = data[NAMES].drop(columns=["model", "variant"])
    return Figure(
        slug("upstream", model),
        f"Change in accuracy on each set, in points{results.of(model)}: blue is gain, orange loss.",
        f"Changes{results.of(model)} from {between(data, 'change_pts', 'method', 'evaluated_on')}.",
        shown,
        charts.heat(shown, "evaluated_on", "method", "change_pts"),
    )
