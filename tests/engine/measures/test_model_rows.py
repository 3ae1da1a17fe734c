"""Users' rows of accuracies: what is read, and the line that names each mistake."""

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
    text = "\ufeffset,year,model,accuracy\na,2020,m, 40.5 \nup,2020,m,80\n\nup,2021,n,0\na,,n,100\n"
    rows = read(tmp_path, text)
    assert list(rows.index) == ["m", "n"] and list(rows) == ["up", "a", "b"]
    np.testing.assert_array_equal(rows, [[80, 40.5, np.nan], [0, 100, np.nan]])


@pytest.mark.parametrize(
    "text, message",
    [
        ("model,set\nm,up\n", "with the columns model, set, accuracy"),
        ("model,set,accuracy\n", "no accuracy is above 1; give models"),
        ("model,set,accuracy\nm,up,0.8\nm,a,0.4\n", "no accuracy is above 1; .* in percent"),
        (GOOD + "\nm,A,3\n", "line 5: m on A: the campaign has no such set, only up, a, b"),
        (GOOD + "m,b,101\n", "line 4: m on b: the accuracy is no number"),
        (GOOD + "m,b\n", "line 4: m on b: the accuracy is no number"),
        (GOOD + "m,a,40\n", "line 4: m on a: the set is given twice"),
        (GOOD + " ,b,3\n", "line 4: .*the line names no model"),
        (GOOD + "n,a,3\n", "n needs a line for the upstream set, up, and one"),
        (GOOD + "n,up,3\n", "n needs a line for the upstream set, up, and one"),
        (b"model,set,accuracy\n\xff,up,3\n", "cannot be read as a CSV file in UTF-8"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"models.csv.*{message}"):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv cannot be read"):
        model_rows.read(tmp_path / "none.csv", ["a"], "up")
