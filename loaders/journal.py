"""What an interrupted encoder had written, so that the next one goes on from there.

The journal stands beside the unfinished images. A line of it is written after the images that it
names are on the disk, so whatever stops an encoder costs the images since the last line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    """Entries of items in their order; `begin` finds those of an earlier run of one `request`."""

    def __init__(self, folder: Path, request: str) -> None:
        self._path = folder / JOURNAL
        self._request = request
        self._pending: list[Entry] = []

    def begin(self) -> list[Entry]:
        """Entries that an earlier run of the same request left; none where it was another."""
        if not self._path.is_file():
            return []
        text = self._path.read_text(errors="replace")
        whole = text[: text.rfind("\n") + 1]
        lines = whole.splitlines()
        if not lines or lines[0] != self._request:
            return []
        found = [one for line in lines[1:] for one in json.loads(line)]
        os.truncate(self._path, len(whole))  # a line that was cut is written again
        return [one if isinstance(one, str) else Written(*one) for one in found]

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
        with self._path.open("a") as file:
            file.write(json.dumps(self._pending) + "\n")  # ASCII
            file.flush()
            os.fsync(file.fileno())
        self._pending = []

    def end(self) -> None:
        """Remove the journal of a finished pack."""
        self._path.unlink(missing_ok=True)
