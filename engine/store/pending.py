"""Results for the images of a set, stored slice by slice: an interruption costs one slice at most.

The name of a slice's file holds its first and its last row. Its folder is named as the artefact
that will hold all slices: that name's hash covers the model, the data and all else that counts, so
slices of different evaluations never meet. Parquet cannot append, so each slice is a file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.machine import ranks
from engine.machine.files import room_for
from engine.measures import predictions
from engine.store.artifacts import Store
from loaders.schema import DamagedFile

PART = "part-00000.parquet"
SLICE = 8192  # images; large enough that files and gathers between ranks cost nothing


def slices(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Positions [n] in slices of whole batches, about `SLICE` images each."""
    size = batch_size * max(1, SLICE // batch_size)
    return [positions[i : i + size] for i in range(0, len(positions), size)]


class PartialPredictions:
    """A model's predictions on a set while they come in slice by slice.

    todo: numbers of the slices that are missing. Every rank calls every method; rank 0 writes.
    `put` asks no other rank, so that a thread may call it.
    """

    def __init__(
        self,
        store: Store,
        average: predictions.Average,
        name: tuple[str, Mapping[str, Any]],
        cuts: Sequence[np.ndarray],
    ) -> None:
        """`name`: label and key of the predictions' artefact. `cuts`: the slices' positions."""
        self.store, self.average, self.cuts = store, average, cuts
        self.label, self.key = name
        self._only_slice: pa.Table | None = None
        self._files = store.files.below(f"pending/{store.place('predictions', *name).name}")
        self.todo = {k for k in range(len(cuts)) if not ranks.all_agree(self._has(k))}

    def put(self, number: int, table: pa.Table) -> None:
        """Store the predictions of slice `number`: in a file, unless it is the only slice.

        Raises OSError naming the file where the disk is full.
        """
        if len(self.cuts) == 1:
            self._only_slice = table
        elif ranks.rank() == 0:
            self._write_once(number, table)
        self.todo.discard(number)

    def finish(self) -> None:
        """Make the artefact of all slices, and remove their files.

        Raises DamagedFile, naming the folder, where the slices are damaged or hold other images.
        """
        ranks.first(lambda: self.store.make("predictions", self.label, self.key, self._write))
        if ranks.rank() == 0:
            self.store.files.remove(self._files.path)
        self._only_slice = None

    def _write(self, folder: Path) -> None:
        table = self._joined() if self._only_slice is None else self._only_slice
        images = np.sort(table["index"].to_numpy())
        if not np.array_equal(images, np.sort(np.concatenate(self.cuts))):
            raise DamagedFile(
                f"{self._files.path} holds predictions of other images than "
                f"{self.label} needs; delete it and run the same command again"
            )
        write(folder, table, self.key)

    def _joined(self) -> pa.Table:
        try:
            self._files.check()
            return predictions.read(self._files.path)
        except ValueError as error:
            remedy = f"delete {self._files.path} and run the same command again"
            raise DamagedFile(f"{error}; {remedy}") from error

    def _write_once(self, number: int, table: pa.Table) -> None:
        if not self._has(number):
            pq.write_table(table, sink := io.BytesIO(), write_page_checksum=True)
            with room_for(self._files.path / self._name(number)):
                self._files.write(self._name(number), sink.getvalue())

    def _has(self, number: int) -> bool:
        return self._files.has(self._name(number))

    def _name(self, number: int) -> str:
        cut = self.cuts[number]
        return f"{cut[0]:09d}-{cut[-1]:09d}-{len(cut)}.parquet"


def write(folder: Path, table: pa.Table, key: Mapping[str, Any]) -> None:
    """Write predictions as the artefact of `key`; the file's metadata names its model and pack.

    Raises OSError naming the file where the disk is full.
    """
    metadata = {"mix": json.dumps(key["mix"]), "pack": str(key["pack"])}
    with room_for(folder / PART):
        pq.write_table(table.replace_schema_metadata(metadata), folder / PART)
