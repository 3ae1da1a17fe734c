"""Writes the data files of a pack image by image, and resumes an interrupted run.

A journal has one line per written image, with the checksum of its bytes and one of the line. The
next run reuses all images up to the first one whose line or bytes are damaged or missing.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np

from loaders.beton import BetonWriter
from loaders.files.durable import file_hash
from loaders.files.root import Root
from loaders.pack import COLUMNS, FIELDS, IMAGES, SAMPLES, Item

log = logging.getLogger(__name__)
JOURNAL = "journal.jsonl"
_NAMED = 5
_LONGEST = 1000  # maximum bytes of the journal's first line
_LINE_END = 10  # bytes: a space, the line's CRC-32, a newline


@dataclass(frozen=True)
class Stored:
    """The bytes of an image, their CRC-32, its shape (H, W), and a remark if it was unusual."""

    blob: bytes
    crc32: int
    shape: tuple[int, int]
    remark: str


class Written(NamedTuple):
    """A journal line for a written image; the line of an unreadable image is the reason."""

    size: int
    crc32: int
    height: int
    width: int
    remark: str


class PackWriter:
    """Writes `items` in order into `folder`, stored as `mode`.

    Resumes an earlier run of the same `request`. `written`: the items in the file. `skipped`: the
    items that could not be read.
    """

    def __init__(self, folder: Path, items: Sequence[Item], mode: int, request: str) -> None:
        self.written: list[Item] = []
        self.skipped: list[dict[str, str]] = []
        self.shape = (0, 0)
        self._folder, self._items, self._mode = folder, items, mode
        self._runs = Root(folder.parents[1])
        self._files = self._runs.below(folder)
        self._crc32: list[int] = []
        self._unusual: defaultdict[str, list[str]] = defaultdict(list)
        self._writer: BetonWriter | None = None
        self._journal = self._begin(f"{request}\n".encode())

    @property
    def done(self) -> int:
        """Number of items written or skipped, by this run or an earlier one."""
        return len(self.written) + len(self.skipped)

    def write(self, results: Iterable[Stored | str]) -> None:
        """Writes the remaining items: their bytes, or the reasons why they have none."""
        for item, result in zip(self._items[self.done :], results, strict=True):
            entry: Written | str
            if isinstance(result, str):
                entry = result
            else:
                self._open(item, result.shape).add(result.blob, item.label)
                entry = Written(len(result.blob), result.crc32, *result.shape, result.remark)
            self._note(item, entry)
            text = json.dumps(entry).encode()
            self._journal.write(text + _checksum(text))
            self._journal.flush()

    def finish(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Writes the samples, the further columns, and what makes the images readable. Returns each
        column's values, by name."""
        assert self._writer is not None
        fields = [
            np.array([item.label for item in self.written], "<i8"),
            np.array([item.source for item in self.written]),
            np.array([item.key for item in self.written]),
            np.array(self._crc32, "<u4"),
        ]
        formats = [field.dtype for field in fields]
        samples = np.rec.fromarrays(fields, formats=formats, names=",".join(FIELDS))
        self._write_array(SAMPLES, samples)
        self._writer.finish(tag=file_hash(self._folder / SAMPLES).encode())
        if not columns:
            return {}
        numbers: list[dict[str, int]] = [{} for _ in columns]  # of each column's values
        codes = [
            [
                code.setdefault(value, len(code))
                for code, value in zip(numbers, item.values, strict=True)
            ]
            for item in self.written
        ]
        self._write_array(COLUMNS, np.array(codes, "<u4").T)
        return dict(zip(columns, map(list, numbers), strict=True))

    def counts(self, classes: int) -> dict[str, Any]:
        """Returns the manifest's entries about images: counts, shape, skipped and unusual ones."""
        height, width = self.shape
        remarks = {
            kind: f"{len(keys)} image{'s' * (len(keys) > 1)}, such as {', '.join(keys[:_NAMED])}"
            for kind, keys in sorted(self._unusual.items())
        }
        return {
            "count": len(self.written),
            "per_class": np.bincount([i.label for i in self.written], minlength=classes).tolist(),
            "skipped": self.skipped,
            "height": height,
            "width": width,
        } | ({"remarks": remarks} if remarks else {})

    def _write_array(self, name: str, array: np.ndarray) -> None:
        with self._files.open(name, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # full disk: an image without its line is written again
            self._journal.close()
        if self._writer is not None:
            self._writer.close()

    def _begin(self, request: bytes) -> IO[bytes]:
        """Reuses what an earlier run left, and returns the journal, cut at its first fault."""
        first = b""
        if self._files.has(JOURNAL):
            with self._files.open(JOURNAL) as file:
                first = file.readline(_LONGEST)
        if first != request:
            if first:
                log.warning(
                    "%s has a partial encoding with other images or options, or its files changed "
                    "since; starting again",
                    self._folder,
                )
            self._runs.remove(self._folder)  # no other run uses it: we hold the lock
            with self._files.open(JOURNAL, "wb") as file:
                file.write(request)
        journal = self._files.open(JOURNAL, "r+b")
        end = journal.seek(len(request))
        for item, line in zip(self._items, journal, strict=False):
            if not self._take(item, line):
                break
            end += len(line)
        journal.seek(end)
        journal.truncate()
        return journal

    def _take(self, item: Item, line: bytes) -> bool:
        """Reuses an item that an earlier run handled. Returns False for a damaged line or image."""
        text, line_end = line[:-_LINE_END], line[-_LINE_END:]
        if line_end != _checksum(text):
            return False
        entry = msgspec.json.decode(text, type=Written | str)
        if isinstance(entry, Written):
            writer = self._open(item, (entry.height, entry.width))
            if not writer.take(entry.size, entry.crc32, item.label):
                return False
        self._note(item, entry)
        return True

    def _open(self, item: Item, shape: tuple[int, int]) -> BetonWriter:
        if self._writer is None:
            self.shape = shape
            file = self._files.open(IMAGES, "r+b")
            self._writer = BetonWriter(file, len(self._items), self._mode, *shape)
        assert shape == self.shape, (item.key, shape, self.shape)
        return self._writer

    def _note(self, item: Item, entry: Written | str) -> None:
        if isinstance(entry, str):
            self.skipped.append({"key": item.key, "source": item.source, "reason": entry})
            return
        self.written.append(item)
        self._crc32.append(entry.crc32)
        if entry.remark:
            self._unusual[entry.remark].append(item.key)


def _checksum(text: bytes) -> bytes:
    return b" %08x\n" % zlib.crc32(text)
