"""The two data files of a pack, written image by image, from the start or where a run stopped.

A journal lies beside unfinished images. A line of it is written after the images that it names are
on the disk, so an interruption costs no more than the images since the last line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from loaders.beton import BetonWriter, page_size_for
from loaders.files import file_hash, sync
from loaders.pack import IMAGES, SAMPLES, Item

log = logging.getLogger(__name__)
JOURNAL = "journal.jsonl"
EVERY = 1024  # images a line
_NAMED = 5


@dataclass(frozen=True)
class Stored:
    """The bytes of an image, their CRC-32, its shape (H, W), and what was unusual about it."""

    blob: bytes
    crc32: int
    shape: tuple[int, int]
    remark: str


class Written(NamedTuple):
    """An image in the file of images: its place, checksum and shape, and what was unusual."""

    pointer: int
    size: int
    crc32: int
    height: int
    width: int
    remark: str


Entry = Written | str
"""An image, or the reason why it could not be read."""


def page_size_of(shape: tuple[int, int]) -> int:
    """The page size of a pack of images of this shape (H, W)."""
    height, width = shape
    return page_size_for(2 * 3 * height * width)  # a JPEG may outgrow its pixels


class PackWriter:
    """Writes `items` in their order into `folder`, stored as `mode`.

    request: what the next run must ask for to go on after this one; empty: no journal is kept.
    `written`: the items in the file. `skipped`: those that could not be read.
    """

    def __init__(self, folder: Path, items: Sequence[Item], mode: int, request: str) -> None:
        self.written: list[Item] = []
        self.skipped: list[dict[str, str]] = []
        self.shape = (0, 0)
        self._folder, self._items, self._mode, self._request = folder, items, mode, request
        self._images, self._journal = folder / IMAGES, folder / JOURNAL
        self._crc32: list[int] = []
        self._remarks: dict[str, tuple[int, list[str]]] = {}
        self._pending: list[Entry] = []
        self._writer: BetonWriter | None = None

    @property
    def remarks(self) -> dict[str, str]:
        """What was unusual about images: the kind, and how many and which."""
        return {
            kind: f"{count} images, such as {', '.join(names)}"
            for kind, (count, names) in sorted(self._remarks.items())
        }

    def begin(self) -> int:
        """How many items an earlier run dealt with. Where none did, the folder is made anew."""
        entries = self._earlier() if self._request and self._journal.is_file() else []
        if not entries:
            shutil.rmtree(self._folder, ignore_errors=True)  # no other run can be using it
            self._folder.mkdir()
            if self._request:
                self._journal.write_text(f"{self._request}\n")
        for item, entry in zip(self._items, entries, strict=False):
            if isinstance(entry, Written):
                shape = entry.height, entry.width
                self._open(item, shape, keep=True).place(entry.size, **self._row(item))
            self._note(item, entry)
        if self._writer is not None:
            self._writer.cut()
        return len(entries)

    def write(self, results: Iterable[Stored | str]) -> None:
        """Write the remaining items: their bytes, or the reason why there are none.

        Raises ValueError naming an image of another shape than the others.
        """
        left = self._items[len(self.written) + len(self.skipped) :]
        for item, result in zip(left, results, strict=True):
            entry = result if isinstance(result, str) else self._store(item, result)
            self._note(item, entry)
            self._pending.append(entry)
            if len(self._pending) == EVERY:
                self._flush()

    def finish(self) -> None:
        """Write the samples and what makes the file of images readable."""
        assert self._writer is not None
        _write_samples(self._folder / SAMPLES, self.written, self._crc32)
        self._writer.finish(tag=file_hash(self._folder / SAMPLES).encode())

    def end(self) -> None:
        """Remove the journal of a finished pack."""
        self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, after the journal has an entry for all that is in it."""
        with contextlib.suppress(OSError):  # a full disk: these images will be written again
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _store(self, item: Item, stored: Stored) -> Written:
        pointer = self._open(item, stored.shape).add(stored.blob, **self._row(item))
        return Written(pointer, len(stored.blob), stored.crc32, *stored.shape, stored.remark)

    def _open(self, item: Item, shape: tuple[int, int], *, keep: bool = False) -> BetonWriter:
        """The file for an image of this shape. keep: it holds the image."""
        if self._writer is None:
            self.shape = shape
            capacity, page_size = len(self._items), page_size_of(shape)
            self._writer = BetonWriter(self._images, capacity, page_size, keep=keep)
        if shape != self.shape:
            raise ValueError(f"{item.key}: its shape is {shape}, others have {self.shape}")
        return self._writer

    def _row(self, item: Item) -> dict[str, int]:
        height, width = self.shape
        return {"mode": self._mode, "height": height, "width": width, "label": item.label}

    def _note(self, item: Item, entry: Entry) -> None:
        if isinstance(entry, str):
            self.skipped.append({"key": item.key, "source": item.source, "reason": entry})
            return
        self.written.append(item)
        self._crc32.append(entry.crc32)
        if entry.remark:
            count, names = self._remarks.get(entry.remark, (0, []))
            self._remarks[entry.remark] = count + 1, [*names, item.key][:_NAMED]

    def _flush(self) -> None:
        """Bring the images to the disk, then the line that names them."""
        pending, self._pending = self._pending, []  # a stop in between must not write it twice
        if not pending or not self._request:
            return
        if self._writer is not None:
            self._writer.sync()
        line = json.dumps(pending) + "\n"  # ASCII
        with self._journal.open("a") as file:
            file.write(line)
        sync(self._journal)

    def _earlier(self) -> list[Entry]:
        """Entries that an earlier run of the same request left, if the images are there.

        The journal is cut after its last whole line; later images are written again.
        """
        request, *lines = self._journal.read_bytes().splitlines(keepends=True) or [b""]
        if request != f"{self._request}\n".encode():
            log.warning(
                "%s holds a part of this set, but of other images or options, or its files changed "
                "since; it is deleted and begun anew",
                self._folder,
            )
            return []
        earlier: list[Entry] = []
        end = len(request)
        for line in lines:
            entries = _entries(line)
            if entries is None:
                break
            earlier += entries
            end += len(line)
        os.truncate(self._journal, end)
        last = next((entry for entry in reversed(earlier) if isinstance(entry, Written)), None)
        size = self._images.stat().st_size if self._images.is_file() else 0
        if last is not None and size < last.pointer + last.size:
            log.warning(
                "%s is missing or ends before its journal does; it is begun anew", self._images
            )
            return []
        return earlier


def _entries(line: bytes) -> list[Entry] | None:
    """The entries of a line, None where it was cut or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(line, type=list[Written | str])
    except msgspec.DecodeError:
        return None


def _write_samples(path: Path, written: Sequence[Item], crc32: Sequence[int]) -> None:
    source = max(1, *(len(item.source) for item in written))
    key = max(1, *(len(item.key) for item in written))
    dtype = [("label", "<i8"), ("source", f"<U{source}"), ("key", f"<U{key}"), ("crc32", "<u4")]
    rows = [
        (item.label, item.source, item.key, crc) for item, crc in zip(written, crc32, strict=True)
    ]
    np.save(path, np.array(rows, dtype), allow_pickle=False)
    sync(path)
