"""The leak: the effect of train-test overlap in campaigns with `dataset.holdout_by=source`."""

from __future__ import annotations

import functools

import pandas

from engine.extras.leak import measure
from engine.measures.tables import with_ends
from engine.report.results import FINE_TUNE, Results
from engine.report.section import Section, Table
from engine.report.sections.paired import ARM, difference_section
from engine.report.text import bounds, signed

LEAK = [end for name in ("seen_pts", "unseen_pts", "leak_pts") for end in with_ends(name)]


@functools.lru_cache(maxsize=1)  # the tables, the first sentences and the section need it
def table(results: Results) -> pandas.DataFrame:
    """The leak of the arms (`measure.of`)."""
    return measure.of(results.grid, results.evaluations)


def tables(results: Results) -> dict[str, pandas.DataFrame]:
    of_results = table(results)
    return {"leak.csv": results.grid.named(of_results)} if len(of_results) else {}


def lead(results: Results) -> str:
    """The leak of plain fine-tuning, or of the first method, without a full stop; empty if it was
    not measured."""
    if not len(of_results := table(results)):
        return ""
    rows = of_results.query("downstream == '' and evaluated_on == ''")
    rows = results.shown[["arm", "model", "method", "key"]].merge(rows, on="arm")
    of = rows.sort_values("key", key=lambda key: key != FINE_TUNE, kind="stable").iloc[0]
    points = f"{signed(of['leak_pts'])} points {bounds(of['leak_low'], of['leak_high'])}"
    name = f"{of['method']}{results.of(of['model'])}{results.in_one_training}"
    if of["leak_low"] > 0:
        return f"Having seen a photo in another dataset is worth {points} to {name}"
    found = "costs" if of["leak_high"] < 0 else "shows no effect on"
    return f"Having seen a photo in another dataset {found} {name}: {points}"


def section(results: Results) -> Section | None:
    """The gain from having seen a photo in another dataset, by method, downstream dataset and
    dataset evaluated on; None if photos were not held out by source."""
    if not len(of_results := table(results)):
        return None
    data = results.shown[["arm", *ARM]].merge(of_results, on="arm").drop(columns="arm")
    of_methods = data["downstream"] == ""
    whole = data["evaluated_on"].mask(data["evaluated_on"] == "", "all")
    by_dataset = data[~of_methods].assign(evaluated_on=whole)
    return difference_section(
        results,
        "leak",
        lead(results),
        "Some datasets show the same photos. A photo is held out of all of them or of none, so "
        "each dataset has photos that a model saw in the downstream dataset, and held-out photos "
        "of the same classes. The leak, the effect of train-test overlap, is the change in "
        "accuracy on seen photos minus the change on held-out photos. RI and mRI use held-out "
        f"photos. Intervals generalise to {results.population}.",
        "leak_pts",
        f"Effect of train-test overlap{results.in_one_training}: mean over datasets with the same "
        "photos",
        [
            Table(
                "leak",
                "Change in accuracy on seen and held-out photos, and the leak.",
                data.loc[of_methods, [*ARM, *LEAK]],
            ),
            Table(
                "leak-by-dataset",
                "The leak by downstream dataset, and by dataset with its photos.",
                by_dataset,
            ),
        ],
        is_open=True,
    )
