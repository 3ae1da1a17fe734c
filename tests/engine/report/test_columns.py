"""Numbers as tables show them."""

from __future__ import annotations

import math

import pandas
import pytest

from engine.report import columns


def texts(data: dict) -> dict[str, list[str]]:
    return {column.name: column.texts for column in columns.shown(pandas.DataFrame(data))}


def test_an_interval_takes_its_ends_from_the_columns_beside_it():
    data = {"x_pts": [3.0, -0.04, None], "x_low": [1.94, -2.0, None], "x_high": [4.06, 2.0, None]}
    assert texts(data) == {"x_pts": ["+3.0 [+1.9, +4.1]", "0.0 [−2.0, +2.0]", "–"]}
    percent = {"x_pct": data["x_pts"], "x_low": data["x_low"], "x_high": data["x_high"]}
    assert texts(percent)["x_pct"][0] == "3.0 [1.9, 4.1]"
    assert texts({"x_pts": [3.0]}) == {"x_pts": ["+3.0"]}


def test_tables_round_as_charts_do():
    """JavaScript's toFixed takes halves away from zero, of the number as it is stored."""
    rounded = ["−6.3", "+0.3", "+2.4", "0.0"]
    assert texts({"x_pts": [-6.25, 0.25, 2.35, -0.04]}) == {"x_pts": rounded}


def test_a_p_has_three_decimals():
    for name in ("p", "corrected_p"):
        assert texts({name: [0.04951, 0.2, 0.0004]}) == {name: ["0.050", "0.200", "<0.001"]}


def test_a_model_is_shown_where_there_are_several():
    assert [*texts({"model": ["a", "a"], "x": [1, 2]})] == ["x"]
    assert [*texts({"model": ["a", "b"], "x": [1, 2]})] == ["model", "x"]


def test_values_without_a_unit_are_shown_as_they_are():
    shown = texts({"n": [1, 20000], "s": ["a", None], "b": [True, False], "f": [0.5, math.nan]})
    assert shown == {
        "n": ["1", "20,000"],
        "s": ["a", "–"],
        "b": ["True", "False"],
        "f": ["0.5", "–"],
    }


@pytest.mark.parametrize(
    ("name", "unit", "head", "title"),
    [
        ("mRI_pts", "pts", "mRI", "mRI, points"),
        ("on_other_sets_pct", "pct", "on other sets", "on other sets, %"),
        ("corrected_p", "p", "corrected p", "corrected p"),
        ("p", "p", "p", "p"),
        ("spearman_r", "r", "spearman", "spearman"),
        ("pts", "", "pts", "pts"),
        ("method", "", "method", "method"),
    ],
)
def test_a_name_tells_its_unit(name, unit, head, title):
    assert columns.unit(name) == unit and columns.title(name) == title
    (column,) = columns.shown(pandas.DataFrame({name: [0.5]}))
    assert column.head == head
