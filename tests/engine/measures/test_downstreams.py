"""Campaigns that fine-tune on other sets than those that RI is measured on."""

import itertools
from statistics import fmean

import pandas
import pyarrow.parquet as pq
import pytest

from engine.measures.all_numbers import all_numbers
from engine.measures.tables import rows
from engine.report import terminal
from helpers.made_results import of_evaluations
from helpers.stores import SETS, cell, random_hits, table

METHODS = ("fine_tune", "lwf")
CASES = {
    "the upstream set alone": ("up",),
    "the upstream set beside the others": (*SETS, "up"),
    "one of the sets": ("b",),
    "some of them": ("a", "c"),
    "a set that is not evaluated": ("train",),
    "a union beside one of its sets": ("a+b", "a"),
    "all sets but one in turn": ("b+c", "a+c", "a+b"),
}


def with_columns(folder, downstreams, seed=0):
    """A grid of random predictions whose models were fine-tuned on `downstreams`."""
    hits, out = random_hits(seed=seed), []
    cells = [("pretrained", "", on) for on in (*SETS, "up")]
    cells += list(itertools.product(METHODS, downstreams, (*SETS, "up")))
    for number, (method, downstream, on) in enumerate(cells):
        path = folder / f"{number}.parquet"
        pq.write_table(table(hits(method, downstream, on)), path)
        out.append(cell(path, method, downstream, on))
    return out


def by_hand(accuracies, downstreams):
    """mRI of each method from the accuracies alone, as a plain double loop."""
    result = {}
    for method in METHODS:
        columns = []
        for i in downstreams:
            changes = [
                accuracies[method, i, j] - accuracies["pretrained", "", j]
                for j in SETS
                if j not in i.split("+")
            ]
            columns.append(sum(changes) / len(changes))
        result[method] = sum(columns) / len(columns)
    return result


@pytest.mark.parametrize("downstreams", CASES.values(), ids=CASES)
def test_mri_comparisons_and_intervals_are_of_the_columns(tmp_path, downstreams):
    results = of_evaluations(with_columns(tmp_path, downstreams), downstreams=list(downstreams))
    read, shown = results.grid, results.shown.set_index("key")
    accuracy = {
        (row.method, row.downstream, row.evaluated_on): row.accuracy for row in rows(read.cells)
    }
    expected = by_hand(accuracy, downstreams)
    assert shown["mRI_pts"].to_dict() == pytest.approx(expected)
    assert (shown["mRI_low"] < shown["mRI_pts"]).all()
    assert (shown["mRI_pts"] < shown["mRI_high"]).all()
    for method, line in shown.iterrows():
        ri = results.ri[results.ri["arm"] == line["arm"]]
        assert ri["RI_pts"].mean() == pytest.approx(line["mRI_pts"])
        assert set(ri["downstream"]) == set(downstreams)
        if "train" in downstreams:
            assert "downstream_accuracy_pct" not in shown
            mean = fmean(accuracy[method, "train", j] for j in SETS)
            assert line["OOD_accuracy_pct"] == pytest.approx(mean)
        else:
            mean = fmean(fmean(accuracy[method, i, j] for j in i.split("+")) for i in downstreams)
            assert line["downstream_accuracy_pct"] == pytest.approx(mean)
        assert ("change_upstream_pts" not in shown) == (downstreams == ("up",))
        text = terminal.table(results)
        assert all(f"{value:.1f}" in text for value in ri["RI_pts"].abs())
    means = read.by_arm.dropna(subset="change_pts")
    assert (means["accuracy_pct"] - means["before_pct"]).tolist() == pytest.approx(
        means["change_pts"].tolist()
    )
    overall, *on_sets = rows(results.comparisons)
    assert overall.difference_pts == pytest.approx(expected["fine_tune"] - expected["lwf"])
    measured = [j for j in SETS if any(j not in i.split("+") for i in downstreams)]
    assert [row.evaluated_on for row in on_sets] == measured
    for row in (overall, *on_sets):
        assert row.difference_low < row.difference_pts < row.difference_high
    of_ri = all_numbers(read, pandas.DataFrame()).query("quantity == 'RI'")
    ri = sorted(zip(of_ri["method"], of_ri["downstream"], strict=True))
    assert ri == sorted(itertools.product(METHODS, downstreams))
