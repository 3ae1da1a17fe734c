"""What is made of a set's images, kept slice by slice, so that an interruption costs one slice.

A slice's file bears its first and last row, in a folder named as the artefact that will hold all of
them: the hash covers the model, the data and all else that counts, so slices of different
evaluations never meet. Parquet cannot append, and a file is there whole or not at all.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.machine import ranks
from engine.machine.files import room_for, write_atomic
from engine.measures import predictions
from engine.store.artifacts import Store

PART = "part-00000.parquet"
SLICE = 8192  # images; large enough that files and gathers between ranks cost nothing


@dataclass(frozen=True)
class Part:
    """Places in the pack (int64, ascending) of some images of `split`; `name` determines them."""

    split: str
    places: np.ndarray
    name: str


def slices(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Positions [n] in slices of whole batches, about `SLICE` images each."""
    size = batch_size * max(1, SLICE // batch_size)
    return [positions[i : i + size] for i in range(0, len(positions), size)]


class Pending:
    """What one model says of a set, given slice by slice; `todo` are the slices still to be given.

    Every rank calls every method; only the first writes.
    """

    def __init__(
        self,
        store: Store,
        mix: Mapping[str, float],
        name: tuple[str, Mapping[str, Any]],
        cuts: Sequence[np.ndarray],
    ) -> None:
        """`name`: label and key of the predictions' artefact. `cuts`: the slices' positions."""
        self.store, self.mix, self.cuts = store, mix, cuts
        self.label, self.key = name
        self._kept: pa.Table | None = None
        self._folder = store.root / "pending" / store.place("predictions", *name).name
        there = [ranks.all_agree(self._file(k).is_file()) for k in range(len(cuts))]
        self.todo = {k for k, found in enumerate(there) if not found}

    def put(self, number: int, table: pa.Table) -> None:
        """Keep the predictions of slice `number`: in a file, unless it is the only one.

        The last one finishes the artefact. Raises OSError naming the file where there is no room
        for it.
        """
        if len(self.cuts) == 1:
            self._kept = table
        else:
            self._keep(number, table)
        self.todo.discard(number)
        if not self.todo:
            self.finish()

    def _keep(self, number: int, table: pa.Table) -> None:
        file = self._file(number)

        def write() -> None:
            if not file.is_file():
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink)
                with room_for(file):
                    write_atomic(file, sink.getvalue().to_pybytes())

        ranks.first(write)

    def finish(self) -> None:
        """Make the artefact of all slices, and remove their files.

        Raises ValueError, naming the folder, where a slice's file holds other images.
        """
        ranks.first(lambda: self.store.make("predictions", self.label, self.key, self._write))
        if ranks.rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._kept = None

    def _write(self, folder: Path) -> None:
        table = self._kept if self._kept is not None else predictions.read(self._folder)
        images = np.sort(table["index"].to_numpy())
        if not np.array_equal(images, np.sort(np.concatenate(self.cuts))):
            raise ValueError(
                f"{self._folder} holds predictions of other images than "
                f"{self.label} needs; delete it and run again"
            )
        write(folder, table, self.key)

    def _file(self, number: int) -> Path:
        cut = self.cuts[number]
        return self._folder / f"{cut[0]:09d}-{cut[-1]:09d}-{len(cut)}.parquet"


def write(folder: Path, table: pa.Table, key: Mapping[str, Any]) -> None:
    """A table as the file of the artefact of a key, whose model and pack the file names as well.

    Raises OSError naming the file where there is no room for it.
    """
    named = {"mix": json.dumps(key["mix"]), "pack": str(key["pack"])}
    with room_for(folder / PART):
        pq.write_table(table.replace_schema_metadata(named), folder / PART)


def keep_array(file: Path, array_ND: np.ndarray) -> None:
    """A slice's array as a .npy file, whole or not at all; one that is there stays.

    Raises OSError naming the file where there is no room for it.
    """
    if not file.is_file():
        sink = io.BytesIO()
        np.save(sink, array_ND, allow_pickle=False)
        with room_for(file):
            write_atomic(file, sink.getvalue())


def join_arrays(files: Sequence[Path], whole: Path) -> None:
    """One .npy file of the slices' arrays [n, D], of which one at a time is in memory.

    Raises OSError naming the file where there is no room for it.
    """
    arrays = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
    header = np.lib.format.header_data_from_array_1_0(arrays[0])
    header["shape"] = (sum(map(len, arrays)), arrays[0].shape[1])
    with room_for(whole), whole.open("wb") as sink:  # a full disk ends a mapped write by SIGBUS
        np.lib.format.write_array_header_1_0(sink, header)
        for array in arrays:
            sink.write(array.tobytes())
