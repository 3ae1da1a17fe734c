"""Numbers as tables show them."""

import pandas
import pytest

from engine.report import columns

X = {"x_low": [1.94, -2.0, None], "x_high": [4.06, 2.0, None]}


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (
            {"x_pts": [3.0, -0.04, None], **X},
            {"x_pts": ["+3.0 [+1.9, +4.1]", "0.0 [−2.0, +2.0]", "–"]},
        ),
        ({"x_pct": [3.0, 0.0, None], **X}, {"x_pct": ["3.0 [1.9, 4.1]", "0.0 [-2.0, 2.0]", "–"]}),
        # JavaScript's toFixed takes halves away from zero, of the number as it is stored.
        ({"x_pts": [-6.25, 0.25, 2.35, -0.04]}, {"x_pts": ["−6.3", "+0.3", "+2.4", "0.0"]}),
        ({"adjusted_p": [0.04951, 0.2, 0.0004]}, {"adjusted_p": ["0.050", "0.200", "<0.001"]}),
        ({"model": ["a", "a"], "x": [1, 20000]}, {"x": ["1", "20,000"]}),
        ({"s": ["a", None], "f": [0.5, None]}, {"s": ["a", "–"], "f": ["0.5", "–"]}),
        ({"b": [True, False]}, {"b": ["True", "False"]}),
    ],
)
def test_a_columns_name_and_type_tell_how_it_is_shown(data, texts):
    shown = columns.shown(pandas.DataFrame(data))
    assert {column.name: column.texts for column in shown} == texts


@pytest.mark.parametrize(
    ("name", "unit", "head", "title"),
    [
        ("OOD_accuracy_pct", "pct", "OOD accuracy", "OOD accuracy, %"),
        ("adjusted_p", "p", "adjusted p", "adjusted p"),
        ("p", "p", "p", "p"),
        ("spearman_r", "r", "spearman", "spearman"),
        ("pts", "", "pts", "pts"),
    ],
)
def test_a_name_tells_its_unit(name, unit, head, title):
    assert columns.unit(name) == unit and columns.title(name) == title
    (column,) = columns.shown(pandas.DataFrame({name: [0.5]}))
    assert column.head == head
