"""The first sentences of a report: the result, and what was done."""

from __future__ import annotations

from engine.measures.bootstrap import SIGNIFICANT
from engine.measures.rows import UNION
from engine.measures.tables import rows
from engine.report import tuning
from engine.report.results import FINE_TUNE, Results
from engine.report.text import bounds, counted, listed, signed

RELATED = (
    "Two datasets are related if they show the same photos, or if one maker drew or made both. A "
    "model fine-tuned on one has seen the photos, or the style, of the other."
)

SMOKE_RUN = (
    "this is a smoke run on at most {} images of each dataset: it shows that the campaign runs; "
    "its numbers are not results"
)


def heading(title: str, results: Results) -> str:
    """The finding of a report with one model; the title for several models and for smoke runs.

    If settings vary, the finding is about the setting that held-out images choose, or the title:
    the highest mRI of all rows would be selected on the test datasets."""
    if results.record.limit:
        return f"Smoke run: {title}"
    if len(results.models) > 1:
        return title
    if found := tuning.tuned(results):
        return f"{found.finding}."
    if tuning.is_varied(results):
        return title
    return finding(results, results.models[0])


def finding(results: Results, model: str) -> str:
    """The result in one sentence: the highest mRI, its 95% interval, and the mRI of plain
    fine-tuning, or of the runner-up."""
    ranked = results.ranked(model)
    if ranked.empty:
        return "No method has been fine-tuned on every dataset yet."
    best, others = ranked.iloc[0], ranked[1:]
    points = f"{signed(best['mRI_pts'])} points {bounds(best['mRI_low'], best['mRI_high'])}"
    if others.empty:
        return f"{best['method']} has an mRI of {points}{results.one_training}."
    other = others.sort_values("key", key=lambda key: key != FINE_TUNE, kind="stable").iloc[0]
    name = "plain fine-tuning" if other["key"] == FINE_TUNE else other["method"]
    return (
        f"{best['method']} has the highest mRI{results.one_training}: {points}; {name}: "
        f"{signed(other['mRI_pts'])}."
    )


def lead(results: Results) -> str:
    """What was done and, for one model, which methods do not differ significantly from the best."""
    models, count = results.models, len(results.grid.downstreams)
    what = "method" if results.record.sweep is None else "configuration"
    has_unions = any(UNION in name for name in results.grid.downstreams)
    of_columns = f"each of {count} {'datasets or unions' if has_unions else 'datasets'} in turn"
    trained_on = of_columns if count > 1 else results.grid.downstreams[0]
    if all(map(results.left_out, results.grid.downstreams)):
        trained_on = f"all but one of {len(results.grid.sets)} datasets in turn"
    text = (
        f"Every {what} fine-tunes the pretrained {listed(models)} on {trained_on} and is "
        f"evaluated on {results.measured_on}; mRI is the mean change in "
        "accuracy, in percentage points."
    )
    of_extras = (of_extra(results) for of_extra in results.hooks("lead"))
    for sentence in (without_related(results), *of_extras):
        text += f" {sentence}." * bool(sentence)
    if tuning.tuned(results):
        return (
            "For each downstream dataset, each method has the setting with the highest accuracy on "
            f"the dataset's held-out images, which RI does not count. {text}"
        )
    if len(models) > 1 or not results.family or tuning.is_varied(results):
        return text
    return (
        f"{told_apart(results, models[0])} (paired tests at {SIGNIFICANT:.0%}, adjusted for "
        f"{counted('comparison', results.family)}; "
        f"{results.seeds}). The interval of the highest mRI is not adjusted for the selection of "
        f"the method. {text}"
    )


def told_apart(results: Results, model: str) -> str:
    """Which methods do not differ significantly from the best. With a single training, the
    statement is about that training.

    Uses the adjusted p, because any method could have been the best one.
    """
    best, *others = rows(results.ranked(model))
    p = results.against(best.arm)["adjusted_p"]
    if not any(row.arm in p for row in others):
        return (
            f"No other method has the setting of {best.method}, so there is no comparison with it"
        )
    alike = [row.method for row in others if row.arm in p and p[row.arm] >= SIGNIFICANT]
    of_setting = " of its setting" * bool(best.setting)
    if alike:
        do = "does" if len(alike) == 1 else "do"
        so = f"{listed(alike)} {do} not differ significantly from {best.method}"
        return so if results.covers_training else f"In this one training, {so}"
    if not results.covers_training:
        return (
            f"In this one training, {best.method} has a higher mRI on images like these than every "
            f"other method{of_setting}"
        )
    return f"{best.method} is significantly better than every other method{of_setting}"


def without_related(results: Results) -> str:
    """How related datasets change mRI, without a full stop: the method whose mRI and disjoint mRI
    differ most, among those that differ by more than the paired interval. Empty if none does, and
    if settings vary."""
    rows = results.disjoint
    moved = rows[(rows["difference_low"] > 0) | (rows["difference_high"] < 0)]
    if moved.empty or tuning.is_varied(results):
        return ""
    most = moved.iloc[moved["difference_pts"].abs().to_numpy().argmax()]
    return (
        "Without datasets that share photos or a maker with the downstream dataset, the mRI of "
        f"{most['method']}{results.of(most['model'])} is {signed(most['disjoint_mRI_pts'])} "
        f"instead of {signed(most['mRI_pts'])}{results.in_one_training}"
    )
