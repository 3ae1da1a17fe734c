"""Write a folder as a whole: it has its name once all its files are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loaders.files import locks
from loaders.files.root import Root


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`, whose files the block moves there once all are written.

    A process at a time writes for a place, so what a killed one left is removed first. Raises
    FileExistsError if another is writing.
    """
    beside, temporary = Root(place.parent), f".{place.name}.part"

    def refuse() -> None:
        raise FileExistsError(f"another command is writing {place}: wait until it ends")

    with locks.held(place.with_name(f".{place.name}.lock"), refuse, beside):
        beside.remove(temporary)
        try:
            yield beside.make_new(temporary)
        finally:
            beside.remove(temporary)
