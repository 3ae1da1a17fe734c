"""Campaigns that fine-tune on other sets than those that RI is measured on."""

from __future__ import annotations

import itertools
from statistics import fmean

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import SETS, cell, grid, random_hits, table

from engine.measures import comparisons, effective_robustness, intervals, metrics
from engine.measures.rows import Accuracy
from engine.measures.standings import standings
from engine.report import certainty
from engine.report.table import table as table_text

METHODS = ("fine_tune", "lwf")
CASES = {
    "the upstream set alone": ("up",),
    "the upstream set beside the others": (*SETS, "up"),
    "one of the sets": ("b",),
    "some of them": ("a", "c"),
    "a set that is not evaluated": ("train",),
}


def with_columns(folder, downstreams, seed=0):
    """A grid of random predictions whose models were fine-tuned on `downstreams`."""
    hits, out = random_hits(seed=seed), []
    cells = [("pre", "", on) for on in (*SETS, "up")]
    cells += list(itertools.product(METHODS, downstreams, (*SETS, "up")))
    for number, (method, downstream, on) in enumerate(cells):
        path = folder / f"{number}.parquet"
        pq.write_table(table(hits(method, downstream, on)), path)
        out.append(cell(path, method, downstream, on))
    return out


def by_hand(accuracy, downstreams):
    """mRI of each method from the accuracies alone, as a plain double loop."""
    accuracies = {(row.method, row.downstream, row.evaluated_on): row.accuracy for row in accuracy}
    result = {}
    for method in METHODS:
        columns = []
        for i in downstreams:
            changes = [accuracies[method, i, j] - accuracies["pre", "", j] for j in SETS if j != i]
            columns.append(sum(changes) / len(changes))
        result[method] = sum(columns) / len(columns)
    return result


@pytest.mark.parametrize("downstreams", CASES.values(), ids=CASES)
def test_mri_is_the_mean_over_the_columns(tmp_path, downstreams):
    read = metrics.gather(with_columns(tmp_path, downstreams))
    summary = metrics.summarise(read, SETS, downstreams)
    expected = by_hand(read.accuracy, downstreams)
    assert {row.method: row.mri for row in summary.mri} == pytest.approx(expected)
    assert all(row.mri_low < row.mri < row.mri_high for row in summary.mri)
    tables = summary.accuracy, summary.mri
    (ranking,) = standings(*tables, sets=SETS, upstream="up", methods={}, downstreams=downstreams)
    for line in ranking.lines:
        assert fmean(line.ri.values()) == pytest.approx(line.mri.mri)
        assert set(line.ri) == set(ranking.downstreams) == set(downstreams)
        if "train" in downstreams:
            assert line.downstream is None
            of_set = line.after["train"]
            assert line.ood == pytest.approx(fmean(of_set[j] for j in SETS))
        else:
            assert line.downstream == pytest.approx(fmean(line.after[i][i] for i in downstreams))
        assert (line.upstream is None) == (downstreams == ("up",))
    text = table_text([ranking])
    assert all(f"{value:.1f}" in text for value in map(abs, ranking.lines[0].ri.values()))


@pytest.mark.parametrize("downstreams", CASES.values(), ids=CASES)
def test_draws_have_their_number_as_centre(tmp_path, downstreams):
    """The mean over a bootstrap's draws is near the number that it estimates."""
    read = metrics.gather(with_columns(tmp_path, downstreams))
    summary = metrics.summarise(read, SETS, downstreams)
    sums = [metrics.in_mri(row.arm, SETS, downstreams) for row in summary.mri]
    assert read.values(sums) == pytest.approx([row.mri for row in summary.mri])
    assert read.draws.of(sums).mean(axis=0) == pytest.approx(read.values(sums), abs=0.5)


@pytest.mark.parametrize("downstreams", CASES.values(), ids=CASES)
def test_comparisons_and_intervals_are_of_the_columns(tmp_path, downstreams):
    read = metrics.gather(with_columns(tmp_path, downstreams))
    summary = metrics.summarise(read, SETS, downstreams)
    rows = certainty.compared(read, summary, SETS, downstreams=downstreams)
    overall, *on_sets = rows
    expected = by_hand(read.accuracy, downstreams)
    assert overall.difference == pytest.approx(expected["fine_tune"] - expected["lwf"])
    assert overall.low < overall.difference < overall.high
    assert [row.evaluated_on for row in on_sets] == list(metrics.weights_in_mri(SETS, downstreams))
    for row in on_sets:
        assert row.low <= row.difference <= row.high
    trends = effective_robustness.trends([row.cell for row in read.accuracy], SETS, "up")
    interval_rows = intervals.intervals(
        read, summary, read.behaviour, SETS, "up", downstreams, trends=trends
    )
    ri = [(row.method, row.downstream) for row in interval_rows if row.quantity == "RI"]
    assert sorted(ri) == sorted(itertools.product(METHODS, downstreams))


def test_a_column_that_an_arm_lacks_is_named(tmp_path):
    cells = with_columns(tmp_path, ("a", "up"))
    part = [row for row in cells if (row.method, row.downstream) != ("lwf", "up")]
    with pytest.raises(ValueError, match=r"lwf \(canonical\) was not fine-tuned on up"):
        metrics.summarise(part, SETS, ("a", "up"))
    with pytest.raises(ValueError, match="was not fine-tuned on every set"):
        arms = [row.arm for row in part if row.method != "pre"]
        pair = (arms[0], arms[0]._replace(method="lwf"))
        comparisons.compare(metrics.gather(part), [pair], SETS, ("a", "up"))


def test_a_plain_grid_is_the_case_of_all_sets(tmp_path):
    read = metrics.gather(grid(tmp_path, random_hits()))
    assert metrics.summarise(read, SETS) == metrics.summarise(read, SETS, SETS)


@given(st.integers(2, 6), st.sets(st.integers(0, 8), min_size=1))
def test_weights_of_a_column_add_up_to_its_share_of_mri(count, picked):
    sets = [f"set {k}" for k in range(count)]
    downstreams = [f"set {k}" for k in sorted(picked)]
    weights = metrics.weights_in_mri(sets, downstreams)
    for downstream in downstreams:
        share = sum(of_set.get(downstream, 0) for of_set in weights.values())
        assert share == pytest.approx(1 / len(downstreams))


def test_effects_of_columns_in_and_outside_the_sets_are_weighed_apart():
    """A model that gains 3 points on one set of three, after fine-tuning on it and upstream."""
    before = dict.fromkeys((*SETS, "up"), 50.0)
    rows = [Accuracy("m", "pre", "", None, "", "", j, 9, value) for j, value in before.items()]
    for i in ("a", "up"):
        arm = ("m", "fine_tune", "canonical", None, "")
        rows += [Accuracy(*arm, i, j, 9, before[j] + 3 * (j == "b")) for j in before]
    (ri,) = metrics.improvements(rows, SETS, ("a", "up")).values()
    assert ri == {"a": 1.5, "up": 1.0}
    assert np.mean(list(ri.values())) == 1.25
