"""Numbers as tables show them."""

from __future__ import annotations

import math

import pandas
import pytest

from engine.measures.comparisons import SIGNIFICANT
from engine.report import display
from engine.report.section import Table


def texts(data: dict, **formats) -> dict[str, list[str]]:
    table = Table("t", "", pandas.DataFrame(data), formats)
    return {column.name: column.texts for column in display.columns(table)}


def test_an_interval_takes_its_ends_and_their_error_from_the_columns_beside_it():
    data = {
        "x": [3.0, -0.04, None],
        "x_low": [1.94, -2.0, None],
        "x_high": [4.06, 2.0, None],
        "x_error": [0.0, 0.2, None],
    }
    assert texts(data, x="interval") == {"x": ["+3.0 [+1.9, +4.1]", "0.0 [−2, +2]", "–"]}
    assert texts(data, x="half") == {"x": ["3.0 ±1.1", "0.0 ±2", "–"]}
    assert texts({"x": [3.0]}, x="interval") == {"x": ["+3.0"]}


def test_half_a_width_has_the_error_of_both_ends():
    data = {"x": [3.0], "x_low": [1.0], "x_high": [5.0], "x_error": [0.07]}
    assert texts(data, x="half") == {"x": ["3.0 ±2.0"]}  # 0.07 / sqrt(2) leaves tenths
    assert texts(data, x="span") == {"x": ["3.0 [1, 5]"]}  # 0.07 alone does not


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


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0.0402, 0.0020, "0.04"),
        (0.0402, 0.0004, "0.040"),
        (0.0455, 0.0010, "<0.05"),  # 0.05 by its digits, and below it by its draws
        (0.0545, 0.0010, ">0.05"),
        (0.0530, 0.0010, "~0.05"),
        (0.0470, 0.0010, "~0.05"),
        (0.31, 0.02, "0.3"),
        (1e-6, 1e-6, "<0.001"),
        (0.0002, 0.0007, "<0.01"),
        (0.001, 0.0058, "<0.05"),  # surely below 0.1 by its digits, and below 0.05 as well
        (0.0, 0.0, "<0.001"),
        (0.05, 0.0, ">0.05"),  # exact
    ],
)
def test_a_corrected_p_says_on_which_side_of_the_threshold_it_is(value, error, expected):
    assert SIGNIFICANT == 0.05
    assert display.corrected_p(value, error) == expected


@pytest.mark.parametrize(
    ("error", "expected"), [(0.0, "+1.2"), (0.05, "+1.2"), (0.051, "+1"), (0.6, "0")]
)
def test_a_range_has_the_digits_that_its_draws_support(error, expected):
    negative = expected.replace("+", "−")
    assert display.range_text(-1.23, 1.23, error) == f"{negative} to {expected}"


def test_a_column_of_long_texts_is_wide():
    data = pandas.DataFrame({"a": ["x", "y"], "b": ["x", "y" * (display.LONG + 1)]})
    assert [column.wide for column in display.columns(Table("t", "T.", data))] == [False, True]
