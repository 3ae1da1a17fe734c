"""The two data files of a pack, written image by image, from the start or where a run stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loaders.beton import ROW, BetonWriter, page_size_for
from loaders.files import file_hash, sync
from loaders.journal import Entry, Journal, Written
from loaders.pack import IMAGES, SAMPLES, Item

_NAMED = 5


@dataclass(frozen=True)
class Stored:
    """The bytes of an image, their CRC-32, its shape (H, W), and what was unusual about it."""

    blob: bytes
    crc32: int
    shape: tuple[int, int]
    remark: str


def page_size_of(shape: tuple[int, int]) -> int:
    """The page size of a pack of images of this shape (H, W)."""
    height, width = shape
    return page_size_for(2 * 3 * height * width)  # a JPEG may outgrow its pixels


class PackWriter:
    """Writes `items` in their order into `folder`; only with a journal can it be resumed.

    `written`: the items in the file. `skipped`: those that could not be read.
    """

    def __init__(
        self, folder: Path, items: Sequence[Item], mode: int, journal: Journal | None
    ) -> None:
        self.written: list[Item] = []
        self.skipped: list[dict[str, str]] = []
        self.shape = (0, 0)
        self._folder, self._items, self._mode, self._journal = folder, items, mode, journal
        self._crc32: list[int] = []
        self._remarks: dict[str, tuple[int, list[str]]] = {}
        self._writer: BetonWriter | None = None

    @property
    def remarks(self) -> dict[str, str]:
        """What was unusual about images: the kind, and how many and which."""
        return {
            kind: f"{count} images, such as {', '.join(names)}"
            for kind, (count, names) in sorted(self._remarks.items())
        }

    def resume(self, done: Sequence[Entry]) -> None:
        """Continue after the first items, of which an earlier run wrote `done`."""
        for item, entry in zip(self._items, done, strict=False):
            self._note(item, entry)
        there = [entry for entry in done if isinstance(entry, Written)]
        if there:
            self.shape = (there[0].height, there[0].width)
            rows = [
                (self._mode, entry.width, entry.height, entry.pointer, item.label)
                for item, entry in zip(self.written, there, strict=True)
            ]
            sizes = np.array([entry.size for entry in there], np.uint64)
            self._writer = BetonWriter.resume(
                self._folder / IMAGES,
                len(self._items),
                page_size_of(self.shape),
                np.array(rows, ROW),
                sizes,
            )

    def write(self, results: Iterable[Stored | str]) -> None:
        """Write the remaining items: their bytes, or the reason why there are none.

        Raises ValueError naming an image of another shape than the others.
        """
        left = self._items[len(self.written) + len(self.skipped) :]
        for item, result in zip(left, results, strict=True):
            entry = result if isinstance(result, str) else self._store(item, result)
            self._note(item, entry)
            if self._journal is not None:
                self._journal.add(entry, self._sync)

    def finish(self) -> None:
        """Write the samples and what makes the file of images readable."""
        assert self._writer is not None
        _write_samples(self._folder / SAMPLES, self.written, self._crc32)
        self._writer.finish(tag=file_hash(self._folder / SAMPLES).encode())

    def close(self) -> None:
        """Close the file, after the journal has an entry for all that is in it."""
        if self._journal is not None:
            with contextlib.suppress(OSError):  # a full disk: these images will be written again
                self._journal.flush(self._sync)
        if self._writer is not None:
            self._writer.close()

    def _store(self, item: Item, stored: Stored) -> Written:
        height, width = stored.shape
        if self._writer is None:
            self.shape = stored.shape
            self._writer = BetonWriter(
                self._folder / IMAGES, len(self._items), page_size_of(self.shape)
            )
        if stored.shape != self.shape:
            raise ValueError(f"{item.key}: its shape is {stored.shape}, others have {self.shape}")
        self._writer.add(stored.blob, mode=self._mode, height=height, width=width, label=item.label)
        return Written(*self._writer.last, stored.crc32, height, width, stored.remark)

    def _note(self, item: Item, entry: Entry) -> None:
        if isinstance(entry, str):
            self.skipped.append({"key": item.key, "source": item.source, "reason": entry})
            return
        self.written.append(item)
        self._crc32.append(entry.crc32)
        if entry.remark:
            count, names = self._remarks.get(entry.remark, (0, []))
            self._remarks[entry.remark] = count + 1, [*names, item.key][:_NAMED]

    def _sync(self) -> None:
        if self._writer is not None:
            self._writer.sync()


def _write_samples(path: Path, written: Sequence[Item], crc32: Sequence[int]) -> None:
    source = max(1, *(len(item.source) for item in written))
    key = max(1, *(len(item.key) for item in written))
    dtype = [("label", "<i8"), ("source", f"<U{source}"), ("key", f"<U{key}"), ("crc32", "<u4")]
    rows = [
        (item.label, item.source, item.key, crc) for item, crc in zip(written, crc32, strict=True)
    ]
    np.save(path, np.array(rows, dtype), allow_pickle=False)
    sync(path)
