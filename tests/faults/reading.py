"""Kinds `read:FILE`: a file of a campaign is changed at random, and the engine's reader meets it.

A reader is a call of the engine in a forked process, so a trial takes a fraction of a second.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.machine import entry
from faults import mutations
from faults.campaign import Campaign
from faults.children import Ended, fork
from faults.mutations import CHANGES, JSON_CHANGES, REMEDY, only_error
from faults.outcome import require
from faults.readers import READERS, Reader, digest_of
from faults.specimen import Specimen

PREFIX = "read:"
MOST = 4  # files of a kind that are changed: each is first read undamaged and without it
ENDS_WITHIN_S = 60  # on an idle machine; its CPU seconds are bounded by `only_error`


@dataclass
class Files:
    """Files of a specimen, and what may be read of them.

    by_path: digests of what an undamaged file gives, and of what is read without that file.
    """

    specimen: Specimen
    by_path: dict[Path, set[str]] = field(default_factory=dict)

    def accepted(self, reader: Reader, path: Path) -> set[str]:
        """What may be read where a file is damaged, unless it is an error: what was there, or what
        the engine makes of it where there is no such file."""
        if path not in self.by_path:
            undamaged = self.read(reader, path)
            log = (self.specimen.folder / "log").read_text()[-1500:]
            require(undamaged, f"{path} cannot be read undamaged: {log}")
            self.specimen.restore()
            mutations.delete(path, random.Random(), [])
            missing = self.read(reader, path)
            self.specimen.restore()
            self.by_path[path] = {undamaged, missing} - {""}
        return self.by_path[path]

    def read(self, reader: Reader, path: Path, done: str = "") -> str:
        """Digest of what a reader reads; empty after a user's error. Raises FellShort."""
        value = self.specimen.folder / "value"
        value.unlink(missing_ok=True)

        def write() -> None:
            value.write_text(digest_of(reader(self.specimen, path)))

        def work() -> int:
            return entry.guarded(write)

        ended = fork(work, self.specimen.folder / "log", {}).wait(ENDS_WITHIN_S)
        if ended.code == 0:
            return value.read_text()
        if done:
            check_error(ended, path, self.specimen.runs, done)
        return ""


def check_error(ended: Ended, path: Path, runs: Path, done: str) -> None:
    """Raise FellShort unless a reader ended in a line that names a file and a remedy."""
    line = only_error(ended, done)
    inside = path.relative_to(runs)
    folders = [runs / folder for folder in inside.parents if is_of_one(folder)]
    named = path.name in line or any(str(folder) in line for folder in folders)
    require(named and REMEDY.search(line), f"after {done}, no file or remedy in: {line}")


def is_of_one(folder: Path) -> bool:
    """Whether a folder below `runs` is of one artefact or campaign."""
    return len(folder.parts) > {"store": 2, "packs": 1}.get((*folder.parts, "")[0], 0)


def read(kind: str, campaign: Campaign, rng: random.Random) -> str:
    """A changed file gives what it gave before, or what no file gives, or a line that names it and
    a remedy."""
    files = files_of(campaign)
    reader, paths = READERS[kind], files.specimen.files[kind]
    path = rng.choice(paths[:: math.ceil(len(paths) / MOST)])
    accepted = files.accepted(reader, path)
    change = rng.choice([*CHANGES, *(JSON_CHANGES if path.suffix == ".json" else ())])
    done = f"{change.__name__} of {path.relative_to(files.specimen.runs)}"
    try:
        change(path, rng, paths)
        value = files.read(reader, path, done)
        require(not value or value in accepted, f"after {done}, another value was read")
    finally:
        files.specimen.restore()
    return done


@functools.cache
def files_of(campaign: Campaign) -> Files:
    """The files that trials change. A kind without a reader would never be tried."""
    specimen = Specimen(campaign)
    kinds = specimen.files.keys() ^ READERS.keys()
    assert not kinds, f"a kind of file without reader, or the other way round: {sorted(kinds)}"
    return Files(specimen)


KINDS: dict[str, Callable[[Campaign, random.Random], str]] = {
    f"{PREFIX}{kind}": functools.partial(read, kind) for kind in READERS
}
