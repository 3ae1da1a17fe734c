"""Tables of scores per image that other programs wrote: CSV, Parquet or JSON lines.

Files are untrusted: sizes are limited, and nothing in a file is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from loaders.files.names import one_line
from loaders.files.root import READABLE

TEXTS = ("image", "set", "source")
SCORES = ("correct", "score")
COLUMNS = (*TEXTS, "seed", *SCORES, "label", "prediction")
LONGEST, MOST_COLUMNS = 4096, 1000  # characters of a text; columns of JSON lines
MOST, MOST_ROWS = 2 << 30, 50_000_000  # uncompressed bytes and rows of a Parquet file


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """A model's scores. name: the path. is_correct: whether scores are 0 and 100, for wrong and
    correct answers. has_sources, has_labels: whether the file has the columns source and label.

    rows: set, image, source and label (str; without sources, the source is the image; without
    labels, the label is empty), seed (int) and score (float), one row per set, image and seed.
    """

    name: str
    rows: pandas.DataFrame
    is_correct: bool
    has_sources: bool
    has_labels: bool


def read_scores(path: Path) -> ScoreTable:
    """Read a file, or a folder in which each file is a dataset.

    Columns: image; one of correct (0 or 1, read as percent), score (any number), or label and
    prediction (correct if they are equal); optionally set (default: the file's name in a folder),
    source (the photo), seed and, beside correct or score, label (the true class). Other columns
    are ignored. Raises ValueError that names the file and the row, counted from 1, for a missing
    column, an unreadable or too large file, a value that is missing or not a number, and an image
    that occurs twice in a set and seed.
    """
    if not path.is_dir():
        return _read(path, "")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
    if not files:
        raise ValueError(f"{path} contains no file that ends in {', '.join(_READERS)}")
    tables = [_read(file, file.stem) for file in files]
    kinds = {(table.is_correct, table.has_sources, table.has_labels) for table in tables}
    if len(kinds) > 1:
        raise ValueError(
            f"{path}: all files need the same columns of correct, score, label and source"
        )
    rows = pandas.concat([table.rows for table in tables], ignore_index=True)
    _refuse(rows.duplicated(["set", "image", "seed"]), rows, "image", str(path), "repeats")
    return ScoreTable(str(path), rows, *kinds.pop())


def _read(path: Path, default_set: str) -> ScoreTable:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: name a file that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size > READABLE:
        raise ValueError(f"{path} has more than {READABLE:,} bytes")
    with path.open("rb") as file:
        if not any(map(bytes.strip, file)):
            raise ValueError(f"{path} is empty")
    try:
        table = reader(path)
        columns = {name: table[name] for name in COLUMNS if name in table.column_names}
        columns |= {name: of.cast(pa.string()) for name, of in columns.items() if name in TEXTS}
        prediction = columns.pop("prediction", None)
        if "label" in columns:
            label = columns["label"]
            _refuse_missing("label", label, path)
            if prediction is not None and not {*SCORES} & {*columns}:
                _refuse_missing("prediction", prediction, path)
                columns["correct"] = pc.call_function("equal", [label, prediction])
            columns["label"] = label.cast(pa.string())
        rows = pa.table(columns).to_pandas()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path} is not readable ({' '.join(str(error).split())})") from error
    kinds = [name for name in SCORES if name in rows]
    if "image" not in rows or len(kinds) != 1:
        raise ValueError(
            f"{path} has the columns {one_line(', '.join(table.column_names)):.200}: give a column "
            "image, and one of correct, score, or label and prediction"
        )
    if rows.empty:
        raise ValueError(f"{path} contains no rows")
    for name in rows:
        if name == "label":
            continue
        if name in TEXTS:
            _refuse(rows[name].isna(), rows, name, str(path), "is missing")
            continue
        values = pandas.to_numeric(rows[name], errors="coerce").astype(float)
        _refuse(~np.isfinite(values), rows, name, str(path), "is not a number")
        if name == "correct":
            _refuse(~values.isin([0, 1]), rows, name, str(path), "is not 0 or 1")
        if name == "seed":
            whole = (values == values.round()) & (values.abs() < 2**53)
            _refuse(~whole, rows, name, str(path), "is not a whole number")
        rows[name] = values
    is_correct, given = kinds == ["correct"], [name in rows for name in ("source", "label")]
    rows["score"] = rows[kinds[0]] * (100 if is_correct else 1)
    defaults = {"set": default_set, "source": rows["image"], "label": "", "seed": 0}
    rows = rows.assign(**{name: of for name, of in defaults.items() if name not in rows})
    _refuse(rows.duplicated(["set", "image", "seed"]), rows, "image", str(path), "repeats")
    rows = rows[[*TEXTS, "label", "seed", "score"]].astype({"seed": int})
    return ScoreTable(str(path), rows, is_correct, *given)


def _refuse(bad: pandas.Series, rows: pandas.DataFrame, name: str, file: str, fault: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{file}, row {row + 1}: {name} {rows[name].iloc[row]!s:.80} {fault}")


def _refuse_missing(name: str, values: pa.ChunkedArray, path: Path) -> None:
    missing = pc.call_function("is_null", [values], pc.NullOptions(nan_is_null=True))
    given = pandas.DataFrame({name: values.to_pandas()})
    _refuse(missing.to_pandas(), given, name, str(path), "is missing")


def _of_csv(path: Path) -> pa.Table:
    texts = dict.fromkeys(TEXTS, pa.string())
    options = pyarrow.csv.ConvertOptions(column_types=texts, strings_can_be_null=True)
    return pyarrow.csv.read_csv(path, convert_options=options)


def _of_json(path: Path) -> pa.Table:
    decoder, names = msgspec.json.Decoder(dict[str, msgspec.Raw]), set[str]()
    with path.open("rb") as lines:  # pyarrow crashes on values that are nested too deep
        for number, line in enumerate(lines, start=1):
            try:
                if not line.isspace():
                    names |= decoder.decode(line).keys()
            except (msgspec.DecodeError, RecursionError) as error:
                raise ValueError(f"{path}, row {number} is not a JSON object: {error}") from error
            if len(names) > MOST_COLUMNS:  # pyarrow makes each a column of all rows
                raise ValueError(f"{path}, row {number}: more than {MOST_COLUMNS:,} columns")
    texts: dict[str, pa.DataType] = {name: pa.string() for name in TEXTS}  # and never a date
    try:
        found = _with_texts(path, texts)
    except pa.ArrowInvalid:  # some names are numbers
        kinds = {of.name: of.type for of in pyarrow.json.read_json(path).schema}
        numbers = [name for name in TEXTS if name in kinds and not _is_text(kinds[name])]
        found = _with_texts(path, {name: of for name, of in texts.items() if name not in numbers})
    absent = [
        name
        for name in TEXTS
        if name in found.column_names and found[name].null_count == len(found)
    ]
    return found.drop_columns(absent)


def _with_texts(path: Path, texts: Mapping[str, pa.DataType]) -> pa.Table:
    options = pyarrow.json.ParseOptions(explicit_schema=pa.schema(texts))
    return pyarrow.json.read_json(path, parse_options=options)


def _is_text(kind: pa.DataType) -> bool:
    """Whether JSON's values are texts, of which pyarrow reads some as times."""
    return pa.types.is_string(kind) or pa.types.is_temporal(kind) or pa.types.is_null(kind)


def _of_parquet(path: Path) -> pa.Table:
    schema = pq.read_schema(path)
    names = [name for name in COLUMNS if name in schema.names]
    for name in names:
        if pa.types.is_nested(kind := schema.field(name).type):
            raise ValueError(f"{path}: {name} is {kind}: write texts or numbers")
    of_text = [name for name in names if not pa.types.is_primitive(schema.field(name).type)]
    # A text that a file stores once is in memory once, however often it is repeated.
    file = pq.ParquetFile(path, read_dictionary=of_text)
    parts = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    if sum(part.total_byte_size for part in parts) > MOST or file.metadata.num_rows > MOST_ROWS:
        raise ValueError(f"{path} has more than {MOST:,} bytes or {MOST_ROWS:,} rows")
    batches, total = [], 0
    for batch in file.iter_batches(columns=names):  # the sizes above are the file's own claims
        batches.append(batch)
        total += sum(
            of.indices.nbytes if isinstance(of, pa.DictionaryArray) else of.nbytes
            for of in batch.columns
        )
        if total > MOST:
            raise ValueError(f"{path} has more than {MOST:,} bytes")
    table = pa.Table.from_batches(batches)
    for place, name in enumerate(table.column_names):
        if pa.types.is_dictionary(table.schema.field(name).type):
            table = table.set_column(place, name, _texts(table[name], name, path))
    return table


def _texts(values: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """The texts of a dictionary. Raises ValueError for one that is too long to be repeated."""
    lengths = (
        pc.call_function("max", [pc.call_function("binary_length", [chunk.dictionary])]).as_py()
        for chunk in values.chunks
    )
    longest = max((length or 0 for length in lengths), default=0)
    if longest > LONGEST or longest * len(values) > MOST:
        raise ValueError(f"{path} has a {name} of {longest:,} characters in {len(values):,} rows")
    return values.cast(pa.string())


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _of_csv,
    ".parquet": _of_parquet,
    ".jsonl": _of_json,
}
