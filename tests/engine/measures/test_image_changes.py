"""Flips of single images, against a count by hand."""

import dataclasses
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.measures import image_changes
from engine.measures.image_changes import DISPUTED, NEGATIVE, POSITIVE
from engine.measures.rows import PRE
from helpers import stores


def test_counts_are_those_of_the_rows_fine_tuned_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(image_changes, "MOST", 60)
    rows = stores.grid(tmp_path, stores.random_hits(), ("fine_tune", "lwf"))
    changes = image_changes.find_changes(rows)
    before = {row.evaluated_on: stores.right(row) for row in rows if row.method == PRE}
    expected: dict[tuple[str, str, int], Counter] = {}
    for row in rows:
        if row.method == PRE or row.downstream == row.evaluated_on:
            continue
        pairs = zip(before[row.evaluated_on], stores.right(row), strict=True)
        for index, (was, now) in enumerate(pairs):
            if was != now:
                key = row.evaluated_on, POSITIVE if now else NEGATIVE, index
                expected.setdefault(key, Counter())[row.method] += 1
    changes = [change for change in changes if change.change != DISPUTED]
    counted = {(c.evaluated_on, c.change, c.index): Counter(c.by_method) for c in changes}
    assert counted == expected != {}
    assert all(c.rows == sum(c.by_method.values()) for c in changes)
    assert {c.of for c in changes if c.evaluated_on == "a"} == {4}  # 2 methods, 2 other sets
    assert {c.of for c in changes if c.evaluated_on == "up"} == {6}
    monkeypatch.setattr(image_changes, "MOST", 3)
    few = image_changes.find_changes(rows)
    for name in ("a", "b", "c", "up"):
        for change in (NEGATIVE, POSITIVE):
            of_all = [c for c in changes if (c.evaluated_on, c.change) == (name, change)]
            ranked = sorted(of_all, key=lambda c: (-c.rows, c.index))
            assert [c for c in few if (c.evaluated_on, c.change) == (name, change)] == ranked[:3]


def test_a_disputed_image_is_right_for_one_method_and_wrong_for_another(tmp_path):
    """Of four images, both methods change the first two alike, and differ on the others."""
    right = {PRE: [0, 1, 1, 0], "fine_tune": [1, 0, 0, 0], "lwf": [1, 0, 1, 1]}
    rows = stores.grid(
        tmp_path, lambda method, *_: np.array(right[method], bool), ("fine_tune", "lwf")
    )
    changes = image_changes.find_changes(rows)
    disputed = [c for c in changes if c.change == DISPUTED and c.evaluated_on == "a"]
    assert [c.index for c in disputed] == [2, 3]
    assert all(c.by_method == {"lwf": 2} and (c.rows, c.of) == (2, 4) for c in disputed)


def test_a_negative_flip_has_the_answer_of_most_of_the_rows(tmp_path):
    rows = stores.grid(tmp_path, lambda method, *_: np.full(3, method == PRE), ("x", "y", "z"))
    for row, wrong in zip([r for r in rows if r.method != PRE], [4, 3, 3] * 12, strict=True):
        table = stores.table(np.zeros(3, bool), top1=np.full(3, wrong))
        pq.write_table(table, row.path)
    changes = [c for c in image_changes.find_changes(rows) if c.change != DISPUTED]
    assert {(c.change, c.before == c.label, c.after) for c in changes} == {(NEGATIVE, True, 3)}


@pytest.mark.parametrize("what", ["trains", "headline"])
def test_averages_of_models_and_points_of_a_curve_are_not_counted(tmp_path, what):
    rows = stores.grid(tmp_path, stores.random_hits(), ("fine_tune", "wise_ft"))
    rows = [dataclasses.replace(row, **{what: row.method != "wise_ft"}) for row in rows]
    changes = image_changes.find_changes(rows)
    assert {c.of for c in changes if c.evaluated_on == "up"} == {3}
    assert {method for c in changes for method in c.by_method} == {"fine_tune"}
