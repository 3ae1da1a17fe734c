"""Read stored predictions, check them, and reduce them to sums per source image.

Metrics are differences between models on the same images, so all evaluations of a dataset must use
the same images, and damaged predictions raise an error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loaders.pack import photos

IMAGE = ("index", "source", "label", "group")
PROBABILITIES = ("p_top1", "p_true", "margin")
SCHEMA = pa.schema(
    [("index", pa.int64()), ("source", pa.string()), ("label", pa.int64()), ("top1", pa.int64())]
    + [(name, pa.float32()) for name in PROBABILITIES]
)
GROUP = pa.field("group", pa.string())  # if parts of the dataset have equal weight
TEMPERATURES = 2.0 ** (np.arange(-8, 17) / 4)  # 1/4 to 16
# With `evaluate.calibration`: the confidence max_c softmax(z / T)_c at each of `TEMPERATURES`.
SCALED = pa.field("p_top1_scaled", pa.list_(pa.float32()))
OPTIONAL = (GROUP, SCALED)
# Of a file: rows, values of a row's list, bytes of all columns in memory, bytes of a text.
MOST_ROWS, MOST_VALUES, MOST_BYTES, LONGEST = 10_000_000, 100, 1 << 31, 4096
COLUMN = "column:"  # before the name of a further column of the dataset, a string per image


class NotFiniteError(ValueError):
    """A table of predictions with NaN or null values."""


@dataclass(frozen=True)
class Ensemble:
    """Cells, by name, whose outputs are averaged.

    weights: equal (mean of logits); entropy (mean of probabilities, where more confident members
    have more weight); failures (mean of two models' probabilities, where the second has more weight
    on images near those of the cell `reference`).
    """

    members: tuple[str, ...]
    weights: Literal["equal", "entropy", "failures"] = "equal"
    reference: str = ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


Mix = Mapping[str, float]  # cells whose weights are averaged: the weight of each, by its name
Average = Mix | Ensemble


def average_of(plain: dict[str, Any]) -> dict[str, float] | Ensemble:
    """The average of a JSON object: an ensemble if it names members, otherwise a mix."""
    if "members" in plain:
        return Ensemble(**{**plain, "members": tuple(plain["members"])})
    return plain


def plain_of(average: Average) -> dict[str, Any]:
    """An average as a JSON object."""
    return dataclasses.asdict(average) if isinstance(average, Ensemble) else dict(average)


def read_predictions(path: Path) -> pa.Table:
    """Predictions of one evaluation, in the order of their index.

    `path` is a Parquet file or a folder of Parquet parts with the columns of `SCHEMA` and, where
    corruptions and severities have equal weight, `group` ("corruption/severity"); other columns of
    `OPTIONAL`, and further columns of the dataset (`COLUMN`), are read if present.
    Raises ValueError, naming the file, if anything is unreadable, missing, null, NaN or repeated.
    """
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise ValueError(f"{path} contains no Parquet file: evaluate again")
    try:
        tables = [_of_part(part) for part in parts]
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        table = table.combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(
            f"{path} is not a table of predictions ({' '.join(str(error).split())}): evaluate again"
        ) from error
    if not len(table):
        raise ValueError(f"{path} contains no predictions: evaluate again")
    for name in table.column_names:
        bad = table[name].null_count
        if name in PROBABILITIES:
            bad += int(np.isnan(table[name].drop_null().to_numpy()).sum())
        if bad:
            raise NotFiniteError(
                f"{path}: {bad} of {len(table)} values of '{name}' are NaN or null"
            )
    index = table["index"].to_numpy()
    if (np.diff(index) < 0).any():
        table = table.take(np.argsort(index)).combine_chunks()
        index = table["index"].to_numpy()
    if (repeated := np.flatnonzero(np.diff(index) == 0)).size:
        raise ValueError(f"{path}: image index {index[repeated[0]]} occurs more than once")
    return table


def _of_part(path: Path) -> pa.Table:
    """The known columns of a file, which nothing in the file can make far larger than the file."""
    stored = pq.read_schema(path)
    further = [pa.field(name, pa.string()) for name in stored.names if is_further(name)]
    schema = pa.schema([*SCHEMA, *(f for f in OPTIONAL if f.name in stored.names), *further])
    for field in schema:
        kind = stored.field(field.name).type
        if kind != field.type and not (_is_number(kind) and _is_number(field.type)):
            raise pa.ArrowTypeError(f"{field.name} is {kind}, not {field.type}")
    return read_columns(path, schema)


def read_columns(path: Path, schema: pa.Schema) -> pa.Table:
    """These columns of a file, which nothing in the file can make far larger than the file.

    Raises pa.ArrowInvalid for more than the limits above.
    """
    # A text that a file stores once is in memory once, however often it is repeated.
    texts = [field.name for field in schema if field.type == pa.string()]
    file = pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=texts)
    meta = file.metadata
    groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
    parts = [group.column(k) for group in groups for k in range(group.num_columns)]
    parts = [part for part in parts if part.path_in_schema.partition(".")[0] in schema.names]
    values = max((part.num_values for part in parts), default=0)
    if meta.num_rows > MOST_ROWS or values > MOST_VALUES * meta.num_rows:
        raise pa.ArrowInvalid(f"{meta.num_rows:,} rows, or the values in a row, are too many")
    total = sum(part.total_uncompressed_size for part in parts)
    if total > MOST_BYTES:
        raise pa.ArrowInvalid(f"{total:,} bytes are too many")
    table = file.read(schema.names, use_threads=False)
    for name in texts:
        lengths = (pc.call_function("binary_length", [c.dictionary]) for c in table[name].chunks)
        longest = max((pc.call_function("max", [part]).as_py() or 0 for part in lengths), default=0)
        total += longest * len(table)
        if longest > LONGEST:
            raise pa.ArrowInvalid(f"a {name} has {longest:,} bytes in {len(table):,} rows")
    if total > MOST_BYTES:
        raise pa.ArrowInvalid(f"{total:,} bytes are too many")
    return table.cast(schema.with_metadata(table.schema.metadata))


_is_number = pa.types.is_primitive  # of a fixed size


def is_further(name: str) -> bool:
    """Whether a column of a file is a further column of the dataset."""
    return name.startswith(COLUMN)


def columns_of(path: Path) -> list[str]:
    """The names of the dataset's further columns in a file or folder of predictions."""
    first = min(path.glob("*.parquet")) if path.is_dir() else path
    names = pq.read_schema(first).names
    return [name.removeprefix(COLUMN) for name in names if is_further(name)]


def photos_of(path: Path) -> frozenset[str]:
    """The photos (`loaders.pack.photos`) of an evaluation."""
    table = read_predictions(path)
    return photos(table["source"].to_numpy(), table["label"].to_numpy())


def mix_of(path: Path) -> dict[str, float] | Ensemble:
    """The average of cells that made a file's predictions."""
    return average_of(json.loads(pq.read_schema(path).metadata[b"mix"]))


class ImagePredictions(NamedTuple):
    """A model's predictions on a dataset, arrays [N] in the order of the images' index. scaled:
    confidences [N] after temperature scaling, or None if not stored."""

    top1: np.ndarray
    label: np.ndarray
    p_top1: np.ndarray
    p_true: np.ndarray
    weights: np.ndarray
    scaled: np.ndarray | None = None

    @property
    def hit(self) -> np.ndarray:
        """Whether each image's top-1 class is right."""
        return self.top1 == self.label


def scaled_confidences(table: pa.Table) -> np.ndarray | None:
    """Confidences [N, T] at `TEMPERATURES`, if a table has them."""
    if SCALED.name not in table.column_names:
        return None
    return table[SCALED.name].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


Keep = Callable[[pa.Table], pa.Array]  # from predictions to bool [N]


class SetPredictions:
    """The images that all evaluations of a dataset share (`images`, the columns `IMAGE` and further
    ones): `sources` (sorted, unique), the weight of each source's images (`total`), and each
    image's index in the sources (`codes`).

    keep: which images count; None: all.
    """

    def __init__(self, keep: Keep | None = None) -> None:
        self.keep = keep
        self.first: Path | None = None
        self._packs: dict[str, tuple[bytes | None, Path]] = {}

    def add(
        self,
        path: Path,
        model: str = "",
        scale: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> ImagePredictions:
        """Read the predictions of an evaluation.

        `model`: the pretrained model; each may have a pack with other pixels. `scale`: from
        `scaled_confidences` to the confidences [N] after temperature scaling.
        Raises ValueError, naming both files, if the images differ from those already added, or if
        the pack differs from that of the model's other files.
        """
        table = read_predictions(path)
        if self.keep is not None:
            table = table.filter(self.keep(table)).combine_chunks()
        pack = (table.schema.metadata or {}).get(b"pack")
        known, first = self._packs.setdefault(model, (pack, path))
        if pack != known:
            raise ValueError(
                f"{path} and {first} used different packs of one dataset: evaluate both on the "
                "same pack"
            )
        of_images = [name for name in table.column_names if name in IMAGE or is_further(name)]
        images = table.select(of_images)
        if self.first is None:
            self.first, self.images, self.weights = path, images, weights(images)
            self.sources, self.codes = np.unique(images["source"].to_numpy(), return_inverse=True)
            self.total = self.by_source(np.ones(len(images)))
        elif not images.equals(self.images):
            raise ValueError(
                f"{path} and {self.first} used different images of one dataset "
                f"({_difference(images, self.images)}): evaluate both on the same pack"
            )
        top1, label = table["top1"].to_numpy(), table["label"].to_numpy()
        p_top1, p_true = table["p_top1"].to_numpy(), table["p_true"].to_numpy()
        scaled = None
        if scale is not None and (confidences_NT := scaled_confidences(table)) is not None:
            scaled = scale(confidences_NT)
        return ImagePredictions(top1, label, p_top1, p_true, self.weights, scaled)

    def column(self, name: str) -> np.ndarray:
        """str [images]: a further column of the dataset."""
        return self.images[f"{COLUMN}{name}"].to_numpy()

    def by_source(self, case: np.ndarray) -> np.ndarray:
        """[sources]: the weight of the images selected by `case` (bool [images])."""
        return np.bincount(self.codes, self.weights * case, minlength=len(self.sources))


def weights(images: pa.Table) -> np.ndarray:
    """Weight of each image (float64): 1, or the weight that makes severities, then corruptions,
    count equally."""
    if "group" not in images.column_names:
        return np.ones(len(images))
    names, group, size = np.unique(
        images["group"].to_numpy(), return_inverse=True, return_counts=True
    )
    corruptions, corruption = np.unique(
        [name.rpartition("/")[0] or name for name in names], return_inverse=True
    )
    severities = np.bincount(corruption)[corruption]
    return (1 / (len(corruptions) * severities * size))[group]


def _difference(a: pa.Table, b: pa.Table) -> str:
    if a.column_names != b.column_names or len(a) != len(b):
        counts = (f"{len(t)} images with {', '.join(t.column_names)}" for t in (a, b))
        return " and ".join(counts)
    for name in a.column_names:
        x, y = a[name].to_numpy(), b[name].to_numpy()
        if (rows := np.flatnonzero(x != y)).size:
            return f"row {rows[0]} has {name} {x[rows[0]]} and {y[rows[0]]}"
    raise AssertionError("tables that differ, differ somewhere")
