"""Results for the images of a dataset, stored in slices: an interruption costs at most one slice.

A slice's file name has its first and last row. Its folder has the name of the artefact that will
contain all slices, and a digest of the code and versions that make it. The name's hash covers the
model, the data and everything else that matters, so slices of different evaluations never mix.
Parquet cannot append, so each slice is a file.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.machine import ranks
from engine.machine.files import room_for
from engine.measures import predictions
from engine.store import made_by
from engine.store.artifacts import PENDING, Store
from loaders.files.durable import short_digest
from loaders.files.typed_json import DamagedFile

log = logging.getLogger(__name__)
PART = "part-00000.parquet"
SLICE = 8192  # images; large enough to make files and gathers between ranks cheap


def slices(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Splits positions [n] into slices of whole batches, about `SLICE` images each."""
    size = batch_size * max(1, SLICE // batch_size)
    return [positions[i : i + size] for i in range(0, len(positions), size)]


class PartialPredictions:
    """A model's predictions on a dataset while they arrive in slices.

    todo: numbers of the missing slices. All ranks call all methods; rank 0 writes. `put` does not
    communicate with other ranks, so a thread may call it.
    """

    def __init__(
        self,
        store: Store,
        average: predictions.Average,
        name: tuple[str, Mapping[str, Any]],
        cuts: Sequence[np.ndarray],
    ) -> None:
        """name: label and key of the predictions' artefact. cuts: the positions of each slice."""
        self.store, self.average, self.cuts = store, average, cuts
        self.label, self.key = name
        self._only_slice: pa.Table | None = None
        self._folder = f"{PENDING}/{store.place('predictions', *name).name}"
        self._files = store.files.below(f"{self._folder}/{short_digest({**made_by.installed()})}")
        if {*store.files.folders(self._folder)} - {self._files.path.name} and ranks.rank() == 0:
            log.warning(f"{self.label}: its slices of other code or versions are made again")
        self.todo = {k for k in range(len(cuts)) if not ranks.all_agree(self._has(k))}

    def put(self, number: int, table: pa.Table) -> None:
        """Stores the predictions of slice `number`, in a file unless it is the only slice.

        Raises OSError naming the file if the disk is full.
        """
        if len(self.cuts) == 1:
            self._only_slice = table
        elif ranks.rank() == 0 and not self._has(number):
            pq.write_table(table, sink := io.BytesIO(), write_page_checksum=True)
            with room_for(self._files.path / self._name(number)):
                self._files.write(self._name(number), sink.getvalue())
        self.todo.discard(number)

    def finish(self) -> None:
        """Makes the artefact of all slices, and removes their files.

        Raises DamagedFile, naming the folder, if the slices are damaged or have other images.
        """
        ranks.first(lambda: self.store.make("predictions", self.label, self.key, self._write))
        if ranks.rank() == 0:
            self.store.files.remove(self._folder)
        self._only_slice = None

    def _write(self, folder: Path) -> None:
        remedy = f"delete {self._files.path} and run the same command again"
        table = self._only_slice
        if table is None:
            try:
                self._files.check()
                table = predictions.read_predictions(self._files.path)
            except ValueError as error:
                raise DamagedFile(f"{error}; {remedy}") from error
        images = np.sort(table["index"].to_numpy())
        if not np.array_equal(images, np.sort(np.concatenate(self.cuts))):
            raise DamagedFile(
                f"{self._files.path} does not have predictions of exactly the images of "
                f"{self.label}; {remedy}"
            )
        write_predictions(folder, table, self.key)

    def _has(self, number: int) -> bool:
        return self._files.has(self._name(number))

    def _name(self, number: int) -> str:
        cut = self.cuts[number]
        return f"{cut[0]:09d}-{cut[-1]:09d}-{len(cut)}.parquet"


def write_predictions(folder: Path, table: pa.Table, key: Mapping[str, Any]) -> None:
    """Writes predictions as the artefact of `key`; the file's metadata names its model and pack.

    Raises OSError naming the file if the disk is full.
    """
    metadata = {"mix": json.dumps(key["mix"]), "pack": str(key["pack"])}
    with room_for(folder / PART):
        pq.write_table(table.replace_schema_metadata(metadata), folder / PART)
