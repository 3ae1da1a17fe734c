"""Images in Hugging Face's parquet files: a column of `struct<bytes, path>` and a column of labels.

Listing a file reads only metadata, labels and paths. Images are compressed together per row group,
so a process caches the groups that it read last.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LABELS = ("label", "labels", "cls", "wnid")  # label columns to try if no feature names one
MOST_BYTES = 1 << 32  # per row group, uncompressed; usual groups have 100 or 1000 images
# Images are compressed already; a column of more bytes that shrank further is no column of images.
MOST_SHRUNK, SMALL = 200, 1 << 26
MOST_TEXT = 1 << 28  # bytes of a column's texts in a row group or a batch, repeated as in its rows
ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


class ParquetRow(NamedTuple):
    """Where an image is: a row in a row group of a file, and the column."""

    path: str
    group: int
    row: int
    column: str
    number: int  # index of the row in the whole file

    @property
    def where(self) -> str:
        """The row, for errors; as `trees.Place.where`."""
        return f" in row {self.number} of {Path(self.path).name}"

    def read(self, most: int) -> bytes:
        """Returns the bytes of the image.

        Raises ValueError naming file and row if there are none, or more than `most`.
        """
        where = f"{self.path}: row {self.number}"
        value = _group(self.path, self.group, self.column)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"{where} has no image bytes, and a path alone is not followed")
        if len(data) > most:
            raise ValueError(f"{where} has {len(data):,} bytes, too many for an image")
        return data


def features(path: Path) -> Mapping[str, Any]:
    """Returns the columns' features as Hugging Face's `datasets` stores them; empty if it did not.

    Raises ValueError if they are damaged.
    """
    metadata = _open(path).schema_arrow.metadata or {}
    try:
        described = json.loads(metadata.get(b"huggingface", b"{}"))
        found = described.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its `huggingface` metadata is damaged ({error})") from error
    return found if isinstance(found, dict) else {}


def class_names(features: Mapping[str, Any]) -> Sequence[str] | None:
    """Returns the label names of the only `ClassLabel`, or None if there is another number."""
    named = _of_type(features, "ClassLabel")
    return features[named[0]].get("names") if len(named) == 1 else None


def _of_type(features: Mapping[str, Any], kind: str) -> list[str]:
    return [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == kind]


def rows(path: Path) -> Iterator[tuple[ParquetRow, int | str, str]]:
    """Yields each image of a file, its label (a number, or a class name) and its stored name or "".

    Raises ValueError naming file and row for ambiguous or missing image or label columns and an
    empty label, and as `images` does.
    """
    schema, described = _checked(path).schema_arrow, features(path)
    image, label = _image(path, schema, described), _label(path, schema, described)
    for place, name, (value,) in images(path, image, [label]):
        if value is None or isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{path}: row {place.number} has the invalid label {value!r}")
        yield place, value, name


def images(
    path: Path, image: str, columns: Sequence[str]
) -> Iterator[tuple[ParquetRow, str, Sequence[Any]]]:
    """Yields each row's image, its stored file name or "", and its values of other columns.

    Raises ValueError naming file and row for a damaged file, a column of lists, more rows than
    bytes, and a row group that is or becomes too large.
    """
    schema = _checked(path).schema_arrow
    wanted = [*columns, f"{image}.path"]
    kinds = [schema.field(name).type for name in columns]
    if pa.types.is_struct(of := schema.field(image).type) and of.get_field_index("path") >= 0:
        kinds.append(of.field("path").type)
    # A text that a file stores once is in memory once, until its size is known.
    texts = [name for name, kind in zip(wanted, kinds, strict=False) if is_text(kind)]
    if any(pa.types.is_nested(kind) for kind in kinds):
        raise ValueError(f"{path}: {', '.join(wanted)} must be numbers or texts")
    file = _open(path, texts)
    number = 0
    for group in range(file.metadata.num_row_groups):
        try:
            table = file.read_row_group(group, columns=wanted[: len(kinds)], use_threads=False)
            of_columns = [values(table.column(name), name) for name in columns]
            stored = []
            if image in table.column_names:
                paths = pc.call_function("struct_field", [table.column(image)], _PATH)
                stored = values(paths, f"{image}.path")
        except ERRORS as error:
            raise ValueError(f"{path} is damaged at row {number} or after ({error})") from error
        names = stored or [""] * len(table)
        for row, (name, *of_row) in enumerate(zip(names, *of_columns, strict=True)):
            yield ParquetRow(str(path), group, row, image, number), str(name or ""), of_row
            number += 1


def holds_images(path: Path, column: str) -> bool:
    """Whether a file is a parquet file, and a column of it holds the bytes of images."""
    try:
        schema = pq.read_schema(path) if path.is_file() else pa.schema([])
    except (pa.ArrowException, OSError):
        return False
    return schema.names.count(column) == 1 and _holds_bytes(schema.field(column).type)


@functools.lru_cache(maxsize=4)
def _group(path: str, group: int, column: str) -> pa.ChunkedArray:
    file = _open(Path(path))
    found = file.metadata.row_group(group)
    parts = (found.column(number) for number in range(found.num_columns))
    sizes = (p.total_compressed_size for p in parts if p.path_in_schema.startswith(column))
    most, chunks = min(MOST_BYTES, max(SMALL, MOST_SHRUNK * sum(sizes))), []
    try:
        for batch in file.iter_batches(1, [group], [column], use_threads=False):
            chunks.append(batch.column(0))
            if (most := most - batch.nbytes) < 0:
                raise ValueError("images repeat far more bytes than the file has")
        return pa.chunked_array(chunks)
    except ERRORS as error:
        raise ValueError(f"{path}: row group {group} is damaged ({error})") from error


_PATH = pc.StructFieldOptions(["path"])


def _checked(path: Path) -> pq.ParquetFile:
    """A file without two columns of one name, of which `check_size` holds."""
    file = _open(path)
    names = file.schema_arrow.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has two columns named {', '.join(twice)}; rename one")
    check_size(path, file.metadata)
    return file


def is_text(kind: pa.DataType) -> bool:
    """Whether a column's values are texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def values(column: pa.ChunkedArray, name: str) -> list[Any]:
    """The values of a column, whose texts are read as a dictionary: each is in memory once.

    Raises ValueError, naming the column, if the texts are longer than `MOST_TEXT` together.
    """
    found: list[Any] = []
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type):
            found += chunk.to_pylist()
            continue
        lengths = pc.call_function("binary_length", [chunk.dictionary])
        repeated = pc.call_function("take", [lengths.cast(pa.int64()), chunk.indices])
        if (size := pc.call_function("sum", [repeated]).as_py() or 0) > MOST_TEXT:
            raise ValueError(f"{name} has texts of {size:,} bytes in {len(chunk):,} rows")
        texts = chunk.dictionary.to_pylist()
        found += [None if k is None else texts[k] for k in chunk.indices.to_pylist()]
    return found


def check_size(path: Path, metadata: pq.FileMetaData) -> None:
    """Raise ValueError for more rows than bytes, and a row group that is or becomes too large."""
    if metadata.num_rows > (size := path.stat().st_size):
        raise ValueError(f"{path} has {metadata.num_rows:,} rows in {size:,} bytes: no images")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not 0 <= (size := group.total_byte_size) <= MOST_BYTES or _is_bomb(group):
            raise ValueError(f"{path}: row group {number} has {size:,} bytes, too many")


def _is_bomb(group: pq.RowGroupMetaData) -> bool:
    """Whether a column of a row group would become far larger than it is in the file."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return any(
        column.total_uncompressed_size > max(SMALL, MOST_SHRUNK * column.total_compressed_size)
        for column in columns
    )


def _open(path: Path, texts: Sequence[str] = ()) -> pq.ParquetFile:
    """texts: columns that are read as dictionaries."""
    try:
        return pq.ParquetFile(path, read_dictionary=[*texts])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or not a parquet file ({error})") from error


def _image(path: Path, schema: pa.Schema, described: Mapping[str, Any]) -> str:
    """The image column: the feature `Image`, or the only column of bytes."""
    held = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    found = [name for name in _of_type(described, "Image") if name in held] or held
    if len(found) != 1:
        raise ValueError(
            f"{path} has {len(found)} columns of image bytes among {', '.join(schema.names)}; it "
            "needs exactly one"
        )
    return found[0]


def _holds_bytes(of: pa.DataType) -> bool:
    if pa.types.is_struct(of):
        place = of.get_field_index("bytes")
        return place >= 0 and _holds_bytes(of.field(place).type)
    return pa.types.is_binary(of) or pa.types.is_large_binary(of)


def _label(path: Path, schema: pa.Schema, described: Mapping[str, Any]) -> str:
    """The label column: the feature `ClassLabel`, or the first of `LABELS`."""
    of_type = _of_type(described, "ClassLabel")
    found = [name for name in of_type or LABELS if name in schema.names]
    if not found or (of_type and len(found) > 1):
        raise ValueError(
            f"{path} has {len(found)} label columns among {', '.join(schema.names)}; it needs one, "
            f"a ClassLabel or one named {', '.join(LABELS)}"
        )
    return found[0]
