"""Users' rows of accuracies: what is read, and the line that names each mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.measures import model_rows

GOOD = "model,set,accuracy\nm,up,80\nm,a,40\n"


def read(folder: Path, text: str | bytes):
    file = folder / "models.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return model_rows.read(file, ["a", "b"], "up")


def test_rows_in_any_order_with_further_columns_and_a_byte_order_mark(tmp_path):
    text = "\ufeffset,year,model,accuracy\na,2020,m, 40.5 \nup,2020,m,80\nup,2021,n,0\nb,,n,100\n"
    rows = read(tmp_path, text)
    np.testing.assert_array_equal(rows.points("a"), [[80], [40.5]])
    np.testing.assert_array_equal(rows.points("b"), [[0], [100]])


def test_a_set_that_no_model_has_gives_no_points(tmp_path):
    assert read(tmp_path, GOOD).points("b").shape == (2, 0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "lacks the column model, set, accuracy"),
        ("model,set\nm,up\n", "lacks the column accuracy"),
        ("model,set,accuracy\n", "holds no models"),
        (GOOD + "m,A,3\n", "line 4: the campaign has no set 'A'.*valid: a, b, up"),
        (GOOD + "m,b,101\n", "line 4: accuracy '101'"),
        (GOOD + "m,b,nan\n", "line 4: accuracy 'nan'"),
        (GOOD + "m,b\n", "line 4: accuracy ''"),
        (GOOD + ",b,3\n", "line 4: the model has no name"),
        (GOOD + "m,a,40\n", "line 4: m on a is given twice"),
        ("model,set,accuracy\nm,up,0.8\nm,a,0.4\n", "give percent"),
        (GOOD + "n,a,3\n", "n has no accuracy on the upstream set, up"),
        (GOOD + "n,up,3\n", "n has no accuracy on any other set"),
        (b"model,set,accuracy\n\xff,up,3\n", "cannot be read as a CSV file"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"models.csv.*{message}"):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv cannot be read"):
        model_rows.read(tmp_path / "none.csv", ["a"], "up")
