"""What a report says first: the result in a sentence, and what was done."""

from __future__ import annotations

from engine.measures.comparisons import SIGNIFICANT
from engine.measures.tables import rows
from engine.report import tuning
from engine.report.results import FINE_TUNE, Results
from engine.report.text import counted, ends, listed, signed

RELATED = (
    "Two sets are related if they show the same photos, or if one maker drew or made both. A model "
    "that is fine-tuned on one has seen the photos, or the hand, of the other."
)

SMOKE_RUN = (
    "this is a smoke run on at most {} images of each set: it shows that the campaign runs, and "
    "its numbers are no results"
)


def heading(title: str, results: Results) -> str:
    """The finding of a report with one model; the title where there are several, and of a smoke
    run.

    Where settings vary, the finding is that of the held-out choice, or the title: the highest mRI
    of all rows would be selected on the test sets."""
    if results.record.limit:
        return f"Smoke run: {title}"
    if len(results.models) > 1:
        return title
    if found := tuning.tuned(results):
        return f"{found.finding}."
    if results.record.sweep is not None or tuning.is_varied(results):
        return title
    return finding(results, results.models[0])


def smoke_run(results: Results) -> str:
    """That the report is of a smoke run, in a sentence without its stop; else empty."""
    if not (limit := results.record.limit):
        return ""
    return SMOKE_RUN.format(limit)


def finding(results: Results, model: str) -> str:
    """The result in one sentence: the highest mRI, its interval, and the mRI of plain fine-tuning,
    or else of the next."""
    ranked = results.ranked(model)
    if ranked.empty:
        return "No method has been fine-tuned on every set yet."
    best, others = ranked.iloc[0], ranked[1:]
    points = (
        f"{signed(best['mRI_pts'])} points on sets that a model was not fine-tuned on "
        f"(95% interval {ends(best['mRI_low'], best['mRI_high'])}"
    )
    if others.empty:
        return f"{best['method']} has an mRI of {points}){results.one_training}."
    other = others.sort_values("key", key=lambda key: key != FINE_TUNE, kind="stable").iloc[0]
    return (
        f"{best['method']} has the highest of {len(ranked)} mRIs{results.one_training}, {points}, "
        f"not corrected for the choice of the highest); {other['method']} has "
        f"{signed(other['mRI_pts'])}."
    )


def lead(results: Results) -> str:
    """What was done, and for one model which methods differ significantly from the best."""
    models, count = results.models, len(results.grid.downstreams)
    what = "method" if results.record.sweep is None else "variant"
    trained_on = f"each of {count} sets in turn" if count > 1 else results.grid.downstreams[0]
    text = (
        f"Every {what} fine-tunes the pre-trained {listed(models)} on {trained_on} and is "
        f"evaluated on {measured_on(results)}."
    )
    for sentence in (without_related(results), leak(results)):
        text += f" {sentence}." * bool(sentence)
    if tuning.tuned(results):
        return (
            "For each set fine-tuned on, each method has the setting with the highest accuracy on "
            f"that set's held-out images, which RI does not count. {text}"
        )
    if what == "variant" or len(models) > 1 or not results.family or tuning.is_varied(results):
        return text
    return (
        f"{told_apart(results, models[0])} (a paired test at {SIGNIFICANT:.0%}, corrected for "
        f"{counted('comparison', results.family)}; "
        f"{results.seeds}). {text}"
    )


def told_apart(results: Results, model: str) -> str:
    """Which methods are not significantly different from the best; with a single training the
    statement is about that training.

    Judged by the corrected p: the best was chosen by looking at the results, and each of the others
    might have been.
    """
    best, *others = rows(results.ranked(model))
    p = results.against(best.arm)["p_corrected"]
    if not any(row.arm in p for row in others):
        return f"No other row has the setting of {best.method}, so none is compared with it"
    alike = [row.method for row in others if row.arm in p and p[row.arm] >= SIGNIFICANT]
    of_setting = " of its setting" * bool(best.setting)
    if alike:
        are = "is" if len(alike) == 1 else "are"
        so = f"{listed(alike)} {are} not significantly different from {best.method}"
        return so if results.covers_training else f"In this one training, {so}"
    if not results.covers_training:
        return (
            f"In this one training, {best.method} has a higher mRI on images like these than every "
            f"other method{of_setting}"
        )
    return f"{best.method} is significantly better than every other method{of_setting}"


def without_related(results: Results) -> str:
    """How related sets change mRI, in a sentence without its stop: the method whose disjoint mRI is
    farthest from its mRI, of those that differ by more than the paired interval; empty where none
    does, and where settings vary."""
    rows = results.disjoint
    moved = rows[(rows["difference_low"] > 0) | (rows["difference_high"] < 0)]
    if moved.empty or results.record.sweep is not None or tuning.is_varied(results):
        return ""
    most = moved.iloc[moved["difference_pts"].abs().to_numpy().argmax()]
    text = (
        f"Without related sets the mRI of {most['method']}{results.of(most['model'])} is "
        f"{signed(most['disjoint_mRI_pts'])} in place of {signed(most['mRI_pts'])}"
        f"{results.in_one_training}"
    )
    if len(rows) == 1:
        return text
    count = f"{len(moved)} of {len(rows)} mRIs differ by more than their intervals"
    return f"{text}; {count}"


def leak(results: Results) -> str:
    """What having seen a photo in another set is worth to plain fine-tuning, or else to the first
    method, in a sentence without its stop; empty where that is not known."""
    if not len(results.leak):
        return ""
    table = results.leak.query("downstream == '' and evaluated_on == ''")
    table = results.shown[["arm", "model", "method", "key"]].merge(table, on="arm")
    of = table.sort_values("key", key=lambda key: key != FINE_TUNE, kind="stable").iloc[0]
    points = (
        f"{signed(of['leak_pts'])} points (95% interval {ends(of['leak_low'], of['leak_high'])})"
    )
    name = f"{of['method']}{results.of(of['model'])}{results.in_one_training}"
    if of["leak_low"] > 0:
        return f"Having seen a photo in another set is worth {points} to {name}"
    found = "costs" if of["leak_high"] < 0 else "shows no effect on"
    return f"Having seen a photo in another set {found} {name}: {points}"


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
