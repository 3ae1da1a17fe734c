"""Images in Hugging Face's parquet files: a column of `struct<bytes, path>`, a column of labels.

Only metadata, labels and paths are read to list a file. Images lie compressed together, a row group
at a time, so a process keeps the groups that it read last.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

LABELS = ("label", "labels", "cls", "wnid")  # columns, where no feature says which it is
MOST_BYTES = 1 << 32  # of a row group, unpacked; writers make groups of 100 or 1000 images
ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


class Row(NamedTuple):
    """Where an image is: the row of a row group of a file, in a column."""

    path: str
    group: int
    row: int
    column: str
    number: int  # of the row in the whole file

    @property
    def size(self) -> int:
        """As of `trees.Place`: not the whole of a file."""
        return 1

    @property
    def where(self) -> str:
        """As of `trees.Place`."""
        return f" in row {self.number} of {Path(self.path).name}"


class Labelled(NamedTuple):
    """An image's row, its label (a number, or a class's name), and the name that it was stored
    under, if any."""

    place: Row
    label: int | str
    name: str


def features(path: Path) -> Mapping[str, Any]:
    """The columns as Hugging Face's `datasets` describes them; empty where it did not write."""
    metadata = _open(path).schema_arrow.metadata or {}
    try:
        described = json.loads(metadata.get(b"huggingface", b"{}"))
        found = described.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata of `huggingface` is damaged ({error})") from error
    return found if isinstance(found, dict) else {}


def class_names(features: Mapping[str, Any]) -> Sequence[str] | None:
    """The names of the labels that a `ClassLabel` lists, in their order; None if there is none."""
    named = [f for f in features.values() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
    return named[0].get("names") if len(named) == 1 else None


def rows(path: Path) -> Iterator[Labelled]:
    """The images of a file, in order.

    Raises ValueError naming file and row for a damaged file, columns that do not tell which is the
    image and which the label, an empty label, and a row group that is too large.
    """
    file = _open(path)
    schema, described = file.schema_arrow, features(path)
    image, label = _image(path, schema, described), _label(path, schema, described)
    number = 0
    for group in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(group).total_byte_size
        if not 0 <= size <= MOST_BYTES:
            raise ValueError(f"{path}: row group {group}, from row {number} on, has {size:,} bytes")
        is_struct = pa.types.is_struct(schema.field(image).type)
        wanted = [label, *([f"{image}.path"] if is_struct else [])]
        try:
            table = file.read_row_group(group, columns=wanted, use_threads=False)
            labels = table.column(label).to_pylist()
            stored = table.column(image).to_pylist() if image in table.column_names else []
        except ERRORS as error:
            raise ValueError(f"{path} is damaged at row {number} or after ({error})") from error
        names = [(value or {}).get("path") or "" for value in stored] or [""] * len(labels)
        for row, (value, name) in enumerate(zip(labels, names, strict=True)):
            if value is None or isinstance(value, bool) or not isinstance(value, int | str):
                raise ValueError(f"{path}: row {number} has the label {value!r}")
            yield Labelled(Row(str(path), group, row, image, number), value, str(name))
            number += 1


def read(place: Row, most: int) -> bytes:
    """The bytes of an image. ValueError naming file and row where there are none, or too many."""
    where = f"{place.path}: row {place.number}"
    value = _group(place.path, place.group, place.column)[place.row].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError(f"{where} holds no image; a path alone is not followed")
    if len(data) > most:
        raise ValueError(f"{where} holds {len(data):,} bytes, too many for an image")
    return data


@functools.lru_cache(maxsize=4)
def _group(path: str, group: int, column: str) -> pa.ChunkedArray:
    try:
        table = _open(Path(path)).read_row_group(group, columns=[column], use_threads=False)
        return table.column(column)
    except ERRORS as error:
        raise ValueError(f"{path}: row group {group} is damaged ({error})") from error


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is cut or no parquet file ({error})") from error


def _image(path: Path, schema: pa.Schema, described: Mapping[str, Any]) -> str:
    """The column of images: the feature `Image`, or the only one that holds bytes."""
    of_type = [n for n, f in described.items() if isinstance(f, dict) and f.get("_type") == "Image"]
    held = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    found = [name for name in of_type if name in held] or held
    if len(found) != 1:
        raise ValueError(
            f"{path} has {len(found)} columns of image bytes among {', '.join(schema.names)}; one "
            "is needed"
        )
    return found[0]


def _holds_bytes(of: pa.DataType) -> bool:
    if pa.types.is_struct(of):
        place = of.get_field_index("bytes")
        return place >= 0 and _holds_bytes(of.field(place).type)
    return pa.types.is_binary(of) or pa.types.is_large_binary(of)


def _label(path: Path, schema: pa.Schema, described: Mapping[str, Any]) -> str:
    """The column of labels: the feature `ClassLabel`, or one with a usual name."""
    of_type = [
        n for n, f in described.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"
    ]
    found = [name for name in of_type or LABELS if name in schema.names]
    if not found or (of_type and len(found) > 1):
        raise ValueError(
            f"{path} has {len(found)} columns of labels among {', '.join(schema.names)}; one is "
            f"needed, a ClassLabel or called {', '.join(LABELS)}"
        )
    return found[0]
