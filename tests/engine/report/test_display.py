"""Numbers as tables show them."""

from __future__ import annotations

import math

import pandas
import pytest

from engine.report import display
from engine.report.section import Table


def texts(data: dict, **formats) -> dict[str, list[str]]:
    table = Table("t", "", pandas.DataFrame(data), formats)
    return {column.name: column.texts for column in display.columns(table)}


def test_an_interval_takes_its_ends_from_the_columns_beside_it():
    data = {"x": [3.0, -0.04, None], "x_low": [1.94, -2.0, None], "x_high": [4.06, 2.0, None]}
    assert texts(data, x="interval") == {"x": ["+3.0 [+1.9, +4.1]", "0.0 [−2.0, +2.0]", "–"]}
    assert texts(data, x="half") == {"x": ["3.0 ±1.1", "0.0 ±2.0", "–"]}
    assert texts({"x": [3.0]}, x="interval") == {"x": ["+3.0"]}


def test_tables_round_as_charts_do():
    """JavaScript's toFixed takes halves away from zero, of the number as it is stored."""
    assert texts({"x": [-6.25, 0.25, 2.35, -0.04]}, x="signed1") == {
        "x": ["−6.3", "+0.3", "+2.4", "0.0"]
    }


def test_a_p_has_three_decimals():
    assert texts({"p": [0.04951, 0.2, 0.0004]}, p="p") == {"p": ["0.050", "0.200", "<0.001"]}


def test_a_model_is_shown_where_there_are_several():
    assert [*texts({"model": ["a", "a"], "x": [1, 2]})] == ["x"]
    assert [*texts({"model": ["a", "b"], "x": [1, 2]})] == ["model", "x"]


def test_values_without_a_format_are_shown_as_they_are():
    shown = texts({"n": [1, 20000], "s": ["a", None], "b": [True, False], "f": [0.5, math.nan]})
    assert shown == {
        "n": ["1", "20000"],
        "s": ["a", "–"],
        "b": ["True", "False"],
        "f": ["0.5", "–"],
    }


@pytest.mark.parametrize("formats", [{"x": "round"}, {"y": "plain1"}])
def test_a_format_that_does_not_exist_is_refused(formats):
    with pytest.raises(ValueError, match=r"table t: format .* formats signed1"):
        texts({"x": [1.0]}, **formats)
