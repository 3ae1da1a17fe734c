"""The store of per-image predictions, read back: checked once, reduced to sums a source image.

Metrics are differences between models on the same images, so what matters here is that two
evaluations of a set really saw the same images, and that nothing damaged is averaged in silence.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = ("index", "source", "label", "group", "weight")
PROBABILITIES = ("p_top1", "p_true", "margin")
SCHEMA = pa.schema(
    [("index", pa.int64()), ("source", pa.string()), ("label", pa.int64()), ("top1", pa.int64())]
    + [(name, pa.float32()) for name in PROBABILITIES]
)
GROUP = pa.field("group", pa.string())  # where parts of the set count alike
WEIGHT = pa.field("weight", pa.float64())  # of a sample's images in the accuracy of their set
Key = TypeVar("Key", bound=Hashable)


def read(path: Path) -> pa.Table:
    """Predictions of one evaluation, in the order of their index.

    `path` is a Parquet file or a folder of Parquet parts with the columns of `SCHEMA` and,
    where corruptions and severities are to count alike, `group` ("corruption/severity"), and where
    they are a sample of the set, `weight`.
    Raises ValueError naming the file for anything unreadable, absent, null, NaN or given twice.
    """
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise ValueError(f"{path} holds no Parquet part: evaluate again")
    try:
        table = pa.concat_tables([pq.ParquetFile(part).read() for part in parts])
        schema = SCHEMA
        for extra in (GROUP, WEIGHT):
            if extra.name in table.column_names:
                schema = schema.append(extra)
        schema = schema.with_metadata(table.schema.metadata)
        table = table.select(schema.names).cast(schema).combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path} is no prediction table ({error}): evaluate again") from error
    if not len(table):
        raise ValueError(f"{path} holds no predictions: evaluate again")
    for name in table.column_names:
        bad = table[name].null_count
        if name in (*PROBABILITIES, WEIGHT.name):
            bad += int(np.isnan(table[name].drop_null().to_numpy()).sum())
        if bad:
            raise ValueError(f"{path}: {bad} of {len(table)} values of '{name}' are NaN or null")
    index = table["index"].to_numpy()
    if (np.diff(index) < 0).any():
        table = table.take(np.argsort(index)).combine_chunks()
        index = table["index"].to_numpy()
    if (again := np.flatnonzero(np.diff(index) == 0)).size:
        raise ValueError(f"{path}: image index {index[again[0]]} occurs more than once")
    return table


def mix_of(path: Path) -> dict[str, float]:
    """The cells whose weighted mean gave the predictions in a file of the store, and the weights.

    Raises ValueError naming a file that does not say.
    """
    try:
        return json.loads((pq.read_schema(path).metadata or {})[b"mix"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not say which model it is of ({error!r})") from error


class Seen(NamedTuple):
    """One evaluation as stored, image by image in the order of the index, and its accuracy (%)."""

    top1: np.ndarray
    label: np.ndarray
    p_top1: np.ndarray
    weights: np.ndarray
    accuracy: float

    @property
    def hit(self) -> np.ndarray:
        """Whether each image's top-1 class is the right one."""
        return self.top1 == self.label


class Bank(Generic[Key]):
    """Evaluations of one set: for each, and each of its training seeds, the weight of correct
    images per source (float64).

    `sources` (sorted, unique) name the rows of `total` and of every array in `correct`.
    """

    def __init__(self) -> None:
        self.first: Path | None = None
        self.correct: dict[Key, dict[int, np.ndarray]] = {}
        self._packs: dict[str, tuple[bytes | None, Path]] = {}

    def add(self, key: Key, path: Path, seed: int = 0, model: str = "") -> Seen:
        """Read `path` as what the evaluation `key` saw and said.

        `model`: the pre-trained model behind it; others may have the same images in other pixels.
        Raises ValueError, naming both files, if the images differ from those already added, or the
        pack, which tells pixels, from that of the model's other files.
        """
        table = read(path)
        pack = (table.schema.metadata or {}).get(b"pack")
        known, first = self._packs.setdefault(model, (pack, path))
        if pack != known:
            raise ValueError(
                f"{path} and {first} are of different packs of one set: evaluate both on the same"
            )
        images = table.select([name for name in table.column_names if name in IMAGE])
        if self.first is None:
            self.first, self.images = path, images
            self.sources, self.codes = np.unique(images["source"].to_numpy(), return_inverse=True)
            self.weights = weights(images)
            self.total = np.bincount(self.codes, self.weights)
        elif not images.equals(self.images):
            raise ValueError(
                f"{path} and {self.first} saw different images of one set "
                f"({_difference(images, self.images)}): evaluate both on the same pack"
            )
        top1, label, p_top1 = (table[name].to_numpy() for name in ("top1", "label", "p_top1"))
        sums = np.bincount(self.codes, self.weights * (top1 == label), minlength=len(self.sources))
        self.correct.setdefault(key, {})[seed] = sums
        accuracy = float(100 * sums.sum() / self.total.sum())
        return Seen(top1, label, p_top1, self.weights, accuracy)

    def sums(self, key: Key, seeds: Sequence[int]) -> np.ndarray:
        """(seeds, sources) weight of correct images; without seeds of its own, under each alike."""
        found = self.correct[key]
        own = found.keys() == set(seeds)
        return np.stack([found[s] for s in seeds] if own else [*found.values()] * len(seeds))

    @property
    def sampled(self) -> bool:
        """Whether the images are a sample, with weights of their own."""
        return WEIGHT.name in self.images.column_names

    def saw_the_same(self, other: Bank[Key]) -> bool:
        """Whether both hold evaluations of the same images."""
        return self.images.equals(other.images)


def weights(images: pa.Table) -> np.ndarray:
    """Weight of each image (float64): 1, or what makes severities, then corruptions, count alike.

    Images of a sample bring their own.
    """
    if WEIGHT.name in images.column_names:
        return images[WEIGHT.name].to_numpy()
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


def _difference(here: pa.Table, there: pa.Table) -> str:
    if here.column_names != there.column_names:
        return f"columns {here.column_names} and {there.column_names}"
    if len(here) != len(there):
        return f"{len(here)} and {len(there)} images"
    for name in here.column_names:
        a, b = here[name].to_numpy(), there[name].to_numpy()
        if (rows := np.flatnonzero(a != b)).size:
            return f"row {rows[0]} has {name} {a[rows[0]]} and {b[rows[0]]}"
    raise AssertionError("tables that differ, differ somewhere")
