"""A small file of predictions cannot fill the memory."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.measures import predictions

ROWS = 3000
TEXT = pa.array(["a" * 1_000_000]).dictionary_encode().take(pa.array([0] * ROWS))
LIST = pa.array([[0.5] * 200] * ROWS, pa.list_(pa.float32()))


def table() -> pa.Table:
    numbers = {f.name: pa.array(range(ROWS)).cast(f.type) for f in predictions.SCHEMA}
    return pa.table(numbers, schema=predictions.SCHEMA)


def test_an_unknown_column_is_not_read(tmp_path):
    plain = table()
    path = tmp_path / "x.parquet"
    pq.write_table(plain.append_column("more", TEXT), path, store_schema=False)
    assert path.stat().st_size < 1_000_000
    before = pa.default_memory_pool().max_memory()
    assert predictions.read_predictions(path).column_names == plain.column_names
    assert pa.default_memory_pool().max_memory() - before < 100_000_000


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("source", pa.array([["a"]] * ROWS), "source is list<.*, not string"),
        ("label", pa.array(["1"] * ROWS), "label is string, not int64"),
        ("p_top1_scaled", LIST, "3,000 rows, or the values in a row, are too many"),
        ("column:camera", TEXT, "a column:camera has 1,000,000 bytes in 3,000 rows"),
    ],
)
def test_what_would_fill_the_memory_is_refused(tmp_path, name, values, message):
    plain = table()
    plain = plain.drop_columns([name]) if name in plain.column_names else plain
    schema = plain.schema.append(pa.field(name, values.type))
    columns = pa.Table.from_arrays([*plain.columns, values], schema=schema)
    pq.write_table(columns, path := tmp_path / "x.parquet", store_schema=False)
    with pytest.raises(ValueError, match=rf"x\.parquet is not a table of predictions \({message}"):
        predictions.read_predictions(path)
