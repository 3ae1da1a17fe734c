"""What an interrupted encoder had written, so that the next one continues there.

The journal lies beside the unfinished images. A line is written after the images that it names are
on the disk, so an interruption costs no more than the images since the last line.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from loaders import files

log = logging.getLogger(__name__)
JOURNAL = "journal.jsonl"
EVERY = 1024  # images


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


class Journal:
    """Entries of items in their order; `begin` reads those of an earlier run of `request`."""

    def __init__(self, folder: Path, request: str) -> None:
        self._path = folder / JOURNAL
        self._request = request
        self._pending: list[Entry] = []

    def begin(self) -> list[Entry]:
        """Entries that an earlier run of the same request left; none of another request.

        The journal is cut after its last whole line; later images are written again.
        """
        if not self._path.is_file():
            return []
        request, *lines = self._path.read_bytes().splitlines(keepends=True) or [b""]
        if request != f"{self._request}\n".encode():
            log.warning(
                "%s holds a part of this set, but of other images or options, or its files changed "
                "since; it is deleted and begun anew",
                self._path.parent,
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
        os.truncate(self._path, end)
        return earlier

    def start(self) -> None:
        """An empty journal of this request."""
        self._path.write_text(f"{self._request}\n")

    def add(self, entry: Entry, sync: Callable[[], None]) -> None:
        """Note an entry; every `EVERY` entries, `sync` the images and write a line."""
        self._pending.append(entry)
        if len(self._pending) == EVERY:
            self.flush(sync)

    def flush(self, sync: Callable[[], None]) -> None:
        """`sync` the images, then write what is pending."""
        if not self._pending:
            return
        sync()
        line = json.dumps(self._pending) + "\n"  # ASCII
        self._pending = []  # before it is written: a stop in between must not write it twice
        with self._path.open("a") as file:
            file.write(line)
        files.sync(self._path)

    def end(self) -> None:
        """Remove the journal of a finished pack."""
        self._path.unlink(missing_ok=True)


def _entries(line: bytes) -> list[Entry] | None:
    """The entries of a line, None where it was cut or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(line, type=list[Written | str])
    except msgspec.DecodeError:
        return None
