"""What a report says first: the result in a sentence, and what was done."""

from __future__ import annotations

from engine.measures.comparisons import SIGNIFICANT
from engine.measures.tables import rows
from engine.report import columns
from engine.report.results import FINE_TUNE, Results
from engine.report.text import counted, ends, listed, signed, words


def heading(title: str, results: Results) -> str:
    """The finding of a report with one model, or its title."""
    if results.record.sweep is not None:
        (method,) = results.record.methods.values()
        values = results.shown["mRI_pts"]
        return (  # no variant is named: mRI is measured on the test sets
            f"{method} in {counted('variant', len(values), words(len(values)))}: mRI from "
            f"{signed(values.min())} to {signed(values.max())} points."
        )
    return finding(results, results.models[0]) if len(results.models) == 1 else title


def finding(results: Results, model: str) -> str:
    """The result in one sentence: the highest mRI, its interval, and plain fine-tuning's mRI."""
    ranked = results.ranked(model)
    if ranked.empty:
        return "No method has been fine-tuned on every set yet."
    where = measured_on(results)
    if results.is_square:
        n = len(results.grid.sets) - 1
        where = f"the {counted('set', n, words(n))} a model was not fine-tuned on"
    best = ranked.iloc[0]
    interval = f"95% interval {ends(best['mRI_low'], best['mRI_high'])}"
    points = f"{signed(best['mRI_pts'])} points on {where} ({interval}"
    if len(ranked) == 1:
        return f"{best['method']} has an mRI of {points})."
    text = (
        f"{best['method']} has the highest of {words(len(ranked))} mRIs, {points}, not corrected "
        "for the choice of the highest)"
    )
    if best["key"] == FINE_TUNE:
        second = ranked.iloc[1]
        return f"{text}; the next is {second['method']} with {signed(second['mRI_pts'])}."
    for plain in ranked.loc[ranked["key"] == FINE_TUNE, "mRI_pts"][:1]:
        return f"{text}; plain fine-tuning has {signed(plain)}."
    return f"{text}."


def lead(results: Results) -> str:
    """What was done, and for one model which methods can be told from the best."""
    model, *more = results.models
    shown = results.shown[results.shown["model"] == model]
    n, k = len(results.grid.downstreams), shown["key"].nunique()
    name = f"one of {words(len(results.models))}" if more else model
    what = counted("method", k, words(k).capitalize())
    if results.record.sweep is not None:
        k = len(shown)
        what = f"{counted('variant', k, words(k).capitalize())} of a method"
    trained_on = results.grid.downstreams[0] if n == 1 else f"each of {words(n)} sets in turn"
    text = (
        f"{what} start{'s' * (k == 1)} from the same pre-trained model ({name}). Each fine-tunes "
        f"it on {trained_on} and is evaluated on {measured_on(results)}."
    )
    if more or results.record.sweep is not None:
        return text
    if "change_upstream_pts" in shown:
        ranked = results.ranked(model)
        rows_of_text = [*ranked.index[:1], *ranked.index[1:][ranked["key"][1:] == FINE_TUNE]]
        changes = ranked.loc[rows_of_text].dropna(subset="change_upstream_pts")
        numbers = columns.named_numbers(changes, "method", "change_upstream_pts")
        text += f" Change on the {results.record.upstream} set, in points: {numbers}."
    return f"{indistinguishable(results, model)} {text}".strip()


def alike(results: Results, model: str) -> list[str]:
    """The methods that the images cannot tell from the best.

    Judged by the corrected p: the best was chosen by looking at the results, and each of the others
    might have been.
    """
    best, *others = rows(results.ranked(model))
    p = results.against(best.arm)["p_corrected"]
    return [row.method for row in others if row.arm in p and p[row.arm] >= SIGNIFICANT]


def indistinguishable(results: Results, model: str) -> str:
    """Which methods cannot be told from the best, in a sentence."""
    if len(results.ranked(model)) < 2:
        return ""
    basis = f"a paired test at {SIGNIFICANT:.0%}, corrected for "
    basis += counted("comparison", results.family)
    seeds = len(results.grid.seeds)
    basis += f"; {seeds} training seeds" if seeds > 1 else "; one training seed"
    if names := alike(results, model):
        return f"On these images {listed(names)} cannot be told from it ({basis})."
    return f"Every other method can be told from it ({basis})."


def measured_on(results: Results) -> str:
    """The sets that RI of a column is the mean over: `the 7 other sets`, or `the 8 sets`."""
    sets, columns = set(results.grid.sets), set(results.grid.downstreams)
    if columns <= sets:
        return f"the {counted('other set', len(sets) - 1)}"
    return f"the {counted('set', len(sets))}" + " but the column's" * bool(columns & sets)


def averaged_over(results: Results) -> str:
    """The sets that mRI is the mean over: `the 8 sets`, or `7 downstream sets` where RI is measured
    on others too."""
    count = len(results.grid.downstreams)
    return f"the {counted('set', count)}" if results.is_square else counted("downstream set", count)
