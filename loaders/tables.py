"""Datasets as tables: a file with the path and the label of each image.

A table is a CSV or Parquet file, a .jsonl file (a JSON object per line), or a .txt file without a
header, whose lines are `path label`. Further columns, such as a domain or a split, are kept with
the images. The column of the paths may hold the images themselves, as in Parquet files of Hugging
Face. Reading a table opens no image.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import os
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loaders import parquet, shards
from loaders.files.durable import open_regular
from loaders.files.root import Root
from loaders.pack import Item
from loaders.parquet import ParquetRow
from loaders.trees import IMAGE_SUFFIXES, Listing, Place, StoredImage, first_names

Found = tuple[StoredImage, str]  # where an image is, and its file's size and time
Row = tuple[int, Sequence[str]]  # its line, or its number in a Parquet file, and its values
Reader = Callable[[Path, Sequence[str]], Iterator[Row]]  # of these columns of a file


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns.

    path: of the image's path, or of the image itself. source: of the photo that an image shows,
    which may be a file name; empty: each image is its own. kept: stored with the images; `a+b`
    joins the values of two columns. where: only rows with one of these values, by column. allowed:
    the values of a column, where others are errors.
    """

    path: str
    label: str
    source: str = ""
    kept: Sequence[str] = ()
    where: Mapping[str, Collection[str]] = field(default_factory=dict)
    allowed: Mapping[str, Collection[str]] = field(default_factory=dict)


def listing(
    root: Path,
    tables: Mapping[str, Path],
    columns: Columns,
    given: str = "",
    read: Reader | None = None,
) -> Listing:
    """Lists the images that tables name, in the order of their paths, as `folders.read` does.

    root: the folder of the images. tables: by their value of the column `given`, if there is one;
    each is a file, or a pattern of Parquet files. read: yields a table's rows; by default, the
    reader for its suffix. An image's key is its path or, where the table holds the images, file and
    row; its source is its key, or the value of the source's column, without an image's suffix.

    Raises ValueError naming the table, the row and a remedy: for a column that is missing, a value
    that is empty or not allowed, a path that leads out of the root or through a link, an image that
    is missing, and two rows of one image.
    """
    joined = [name.split("+") for name in columns.kept]
    wanted = [columns.path, columns.label, *filter(None, [columns.source])]
    wanted += [*itertools.chain(*joined), *columns.where, *columns.allowed]
    wanted = [*dict.fromkeys(wanted)]
    place = {name: number for number, name in enumerate(wanted)}
    only = [(place[name], among) for name, among in columns.where.items()]
    allowed = [(place[name], among) for name, among in columns.allowed.items()]
    files = _Images(root)
    found: dict[str, tuple[Path, int, Sequence[str], Found]] = {}
    for value, table in _each(tables):
        images, reader = files, read or _reader(table, columns)
        if parquet.holds_images(table, columns.path):
            images = _Held(table)
            reader = images.rows
        for number, values in _rows(table, wanted, reader, {given: value} if given else {}):
            if any(values[number] not in among for number, among in only):
                continue
            fault = ""
            if "" in values or any(values[number] not in among for number, among in allowed):
                fault = _fault(dict(zip(wanted, values, strict=True)), columns)
            elif first := found.get(path := values[0]):
                fault = f"{path} is also in {_where(*first[:2])}: keep one row of an image"
            else:
                try:
                    found[path] = table, number, values, images.find(path)
                except ValueError as error:
                    fault = str(error)
            if fault:
                raise ValueError(f"{_where(table, number)}: {fault}")
    if not found:
        among = "; ".join(f"{name}: {', '.join(of)}" for name, of in columns.where.items())
        raise ValueError(
            f"{', '.join(map(str, tables.values()))} has no rows"
            + (f" with {among}: correct dataset.where" if among else ": is it the right file?")
        )
    classes = sorted({values[1] for _, _, values, _ in found.values()})
    label_of = {name: label for label, name in enumerate(classes)}
    kept = [[place[name] for name in names] for names in joined]
    source = place[columns.source or columns.path]
    hashed = hashlib.sha256()
    items = []
    for path in sorted(found, key=lambda path: path.replace("/", "\0")):
        _, _, values, (image, stamp) = found[path]
        photo = _photo(values[source])
        hashed.update(f"{values} {photo} {stamp}".encode())
        of_kept = tuple("+".join(values[number] for number in numbers) for numbers in kept)
        items.append(Item(label_of[values[1]], photo, path, image, of_kept))
    return Listing(items, classes, hashed.hexdigest(), columns=tuple(columns.kept))


def listed(
    tables: Mapping[str, Path],
    column: str,
    among: Collection[str],
    images: Sequence[str],
    below: str,
) -> list[str]:
    """The value of a column of each image.

    tables: with the columns `path` and this one, or by the column's value, such as text files with
    a path per line. They may list images of other folders. among: the allowed values. images: their
    paths, below the folder `below`.

    Raises ValueError naming file and row: for a path below the folder that is no image, two rows of
    one image, and a value that is not allowed; and for images that no row lists.
    """
    found: dict[str, tuple[Path, int, str]] = {}
    columns, known = Columns("path", "label", allowed={column: among}), frozenset(images)
    for value, table in tables.items():
        given = {column: value} if value else {}
        for number, row in _rows(table, ["path", column], _reader(table, columns), given):
            path = row[0]
            if not path.startswith(f"{below}/"):
                continue
            fault = ""
            if row[1] not in among:
                fault = _fault(dict(zip(("path", column), row, strict=True)), columns)
            elif first := found.get(path):
                fault = f"{path} is also in {_where(*first[:2])}: keep one row of an image"
            elif path not in known:
                fault = f"there is no image {path}: correct the path, or leave the row out"
            if fault:
                raise ValueError(f"{_where(table, number)}: {fault}")
            found[path] = table, number, row[1]
    if missing := [path for path in images if path not in found]:
        names = ", ".join(map(str, tables.values()))
        raise ValueError(
            f"{names} does not list {len(missing):,} images, such as {missing[0]}: add rows, or "
            "remove the images"
        )
    return [found[path][2] for path in images]


def _photo(name: str) -> str:
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _where(table: Path, number: int) -> str:
    return f"{table}, {'row' if table.suffix == '.parquet' else 'line'} {number}"


def _fault(row: Mapping[str, str], columns: Columns) -> str:
    """What is wrong with a row's values."""
    for name, value in row.items():
        if not value:
            return f"{name} is empty: write a value, {_LEAVE_OUT}"
        if value not in (among := columns.allowed.get(name, (value,))):
            some = first_names(sorted(among))
            return f"{name} is {value!r}, but must be one of {some}: correct it, {_LEAVE_OUT}"
    raise AssertionError(row)


_LEAVE_OUT = "or leave the row out of the table or by dataset.where"


class _Images:
    """The images below a root: each folder is read once, and no link is followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, dict[str, os.DirEntry[str]]] = {}

    def find(self, path: str) -> Found:
        """The place of an image, and the file's size and time."""
        if path != posixpath.normpath(path) or path.startswith(("/", "../")):
            raise ValueError(
                f"{path!r} is not a plain path below {self._root}: write it relative to "
                "dataset.root, without `..` or `//`"
            )
        folder, name = posixpath.split(path)
        if folder not in self._folders:
            self._folders[folder] = self._entries(folder)
        entry = self._folders[folder].get(name)
        if entry is None:
            raise ValueError(
                f"there is no image {self._root / path}: correct the path or dataset.root, "
                f"{_LEAVE_OUT}"
            )
        if not entry.is_file(follow_symlinks=False):
            raise ValueError(
                f"{self._root / path} is a link, which is not followed, or no file: put the image "
                "itself there"
            )
        status = entry.stat(follow_symlinks=False)
        return Place(f"{self._root}/{path}"), f"{status.st_size} {status.st_mtime_ns}"

    def _entries(self, folder: str) -> dict[str, os.DirEntry[str]]:
        try:
            with os.scandir(Root(self._root).at(folder)) as entries:
                return {entry.name: entry for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return {}


class _Held:
    """The images in a column of a Parquet file."""

    def __init__(self, table: Path) -> None:
        self._stamp = shards.fingerprint_of(table)
        self._places: dict[str, ParquetRow] = {}

    def find(self, path: str) -> Found:
        return self._places[path], self._stamp

    def rows(self, table: Path, names: Sequence[str]) -> Iterator[Row]:
        """Yields rows as readers do. names: first, the column of images.

        An image's path is its file and row; numbers of a `ClassLabel` are replaced by their names.
        """
        image, *others = names
        features = parquet.features(table)
        _check_columns(table, pq.read_schema(table).names, names)
        named = [parquet.class_names({name: features.get(name)}) for name in others]
        classes = [shards.checked_names(table, each) if each else () for each in named]
        for place, _, values in parquet.images(table, image, others):
            path, number = f"{table.name}/{place.number:06}", place.number + 1
            texts = _texts(table, number, others, values)
            for index, (value, known) in enumerate(zip(values, classes, strict=True)):
                if known and isinstance(value, int):
                    if not 0 <= value < len(known):
                        raise ValueError(
                            f"{_where(table, number)}: {others[index]} is {value}, but there are "
                            f"{len(known)} names"
                        )
                    texts[index] = known[value]
            self._places[path] = place
            yield number, [path, *texts]


def _each(tables: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Each file of the tables, and its table's value of the given column."""
    for value, table in tables.items():
        for file in shards.find_shards(table) or [table]:
            yield value, file


def _rows(
    table: Path, names: Sequence[str], read: Reader, given: Mapping[str, str]
) -> Iterator[Row]:
    """Yields each row's number, from 1, and its values of these columns, as texts.

    given: values of columns that all rows share.
    """
    of_file = [name for name in names if name not in given]
    if not table.exists():
        raise ValueError(f"there is no file {table.absolute()}: correct its path in the recipe")
    try:
        for number, values in read(table, of_file):
            if given:
                row = {**dict(zip(of_file, values, strict=True)), **given}
                values = [row[name] for name in names]
            yield number, values
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{table} is not a table that can be read ({error})") from error


def _reader(table: Path, columns: Columns) -> Reader:
    if table.suffix == ".txt":
        return functools.partial(_of_text, columns=columns)
    return {".parquet": _of_parquet, ".jsonl": _of_objects}.get(table.suffix, of_csv)


def _opened(table: Path) -> io.TextIOWrapper:
    """The lines of a regular file: a pipe or a device might never end."""
    return io.TextIOWrapper(open_regular(table), encoding="utf-8-sig", newline="")


def of_csv(table: Path, names: Sequence[str]) -> Iterator[Row]:
    """Yields the line and the values of these columns of each row of a CSV file.

    Raises ValueError, naming the file, for a column that it lacks and a row of another length.
    """
    with _opened(table) as file:
        reader = csv.reader(file)
        header = next(reader, [])
        _check_columns(table, header, names)
        places = [header.index(name) for name in names]
        for row in filter(None, reader):  # blank lines have no values
            if len(row) != len(header):
                raise ValueError(
                    f"{table}, line {reader.line_num}: {len(row)} values for {len(header)} "
                    "columns: quote values that contain a comma"
                )
            yield reader.line_num, [row[place] for place in places]


def _of_parquet(table: Path, names: Sequence[str]) -> Iterator[Row]:
    with open_regular(table) as opened:
        schema = pq.read_schema(opened)
        _check_columns(table, schema.names, names)
        for name in names:
            if pa.types.is_nested(kind := schema.field(name).type) or pa.types.is_binary(kind):
                raise ValueError(f"{table}: {name} is {kind}: write texts or numbers")
        texts = [name for name in names if parquet.is_text(schema.field(name).type)]
        file, number = pq.ParquetFile(opened, read_dictionary=texts), 0
        parquet.check_size(table, file.metadata)
        for batch in file.iter_batches(columns=list(names)):
            rows = pa.Table.from_batches([batch])
            columns = (parquet.values(rows[name], f"{table}: {name}") for name in names)
            for values in zip(*columns, strict=True):
                number += 1
                yield number, _texts(table, number, names, values)


def _of_objects(table: Path, names: Sequence[str]) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    header: list[str] = []
    with _opened(table) as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                row = decoder.decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                raise ValueError(f"{table}, line {number} is not a JSON object: {error}") from error
            if not header:
                _check_columns(table, header := list(row), names)
            yield number, _texts(table, number, names, [row.get(name) for name in names])


def _texts(table: Path, number: int, names: Sequence[str], values: Sequence[Any]) -> list[str]:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list | dict):
            raise ValueError(
                f"{_where(table, number)}: {name} is a list or an object: write a text or a number"
            )
    return ["" if value is None else str(value) for value in values]


def _of_text(table: Path, names: Sequence[str], columns: Columns) -> Iterator[Row]:
    _check_columns(table, (columns.path, columns.label), names)
    with _opened(table) as file:
        for number, line in enumerate(file, start=1):
            path, _, label = line.strip().rpartition(" ")
            if label.lower().endswith(IMAGE_SUFFIXES):  # a list of paths
                path, label = line.strip(), ""
            row = {columns.path: path, columns.label: label}
            yield number, [row[name] for name in names]


def _check_columns(table: Path, header: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if header.count(name) != 1:
            has = "no column" if name not in header else "two columns"
            raise ValueError(
                f"{table} has {has} {name!r} among {', '.join(header)}: correct the column's name "
                "in the dataset's recipe"
            )
