"""The sets of ImageNet-RIB in a folder: what was downloaded, what is missing, how it is unpacked.

    FOLDER/downloads.json     address, size and checksum of every file; terms that were accepted
    FOLDER/.downloads/        files that arrive, and archives that wait for their unpacking
    FOLDER/<set>/             archives without compression, or what a zip file held

What stands in a set's folder is whole and was checked.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.data import imagenet
from engine.data.sources import SetFile, Source
from engine.machine.files import write_atomic
from loaders import archives, download, locks
from loaders.benchmarks import devkit
from loaders.download import DownloadError, Progress
from loaders.files import file_hash, whole

ARRIVING = ".downloads"
RECORD = "downloads.json"


@dataclass(frozen=True)
class Target:
    """A file that is to be in a folder, of the set `name`."""

    folder: Path
    name: str
    source: Source
    file: SetFile

    @property
    def key(self) -> str:
        return f"{self.name}/{self.file.name}"

    @property
    def place(self) -> Path:
        return self.file.place(self.folder / self.name)

    @property
    def archive(self) -> Path:
        """Where the file lies until it is unpacked."""
        return self.folder / ARRIVING / self.name / self.file.name

    @property
    def arrived(self) -> int:
        """Bytes of it that an earlier call downloaded."""
        paths = (self.archive, self.archive.with_name(f"{self.file.name}.part"))
        return next((path.stat().st_size for path in paths if path.is_file()), 0)


class Record:
    """What `downloads.json` holds; threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {"accepted": {}, "files": {}}
        try:
            self._values |= json.loads(self._path.read_text())
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise ValueError(
                f"{self._path} is not JSON ({error}); remove it, and checksums of files without a "
                "published one are recorded again"
            ) from error

    def accepted(self, name: str, source: Source) -> bool:
        """Whether the user accepted the terms of a set, as they are now."""
        return self._values["accepted"].get(name) == source.terms

    def accept(self, name: str, source: Source) -> None:
        self._values["accepted"][name] = source.terms
        self._write()

    def knows(self, key: str) -> bool:
        return key in self._values["files"]

    def checksum(self, key: str) -> str:
        """The SHA-256 that was recorded for a file without a published checksum, or nothing."""
        return self._values["files"].get(key, {}).get("recorded_sha256", "")

    def add(self, key: str, **values: Any) -> None:
        with self._lock:
            self._values["files"][key] = values
            self._write()

    def _write(self) -> None:
        write_atomic(self._path, json.dumps(self._values, indent=1).encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder alone, until the process ends at most. Raises DownloadError."""

    def refuse() -> NoReturn:
        raise DownloadError(
            f"another `rib download` is at work in {folder}; wait for it, or give another folder "
            "by --to"
        )

    with locks.held(folder / ARRIVING / "lock", refuse):
        yield


def take(target: Target, folder: Path, record: Record) -> bool:
    """Take a file that the user has in `folder`, as a link or a copy. False if it is not there.

    Raises Mismatch where it is not the published file.
    """
    path = folder / target.file.name
    if not path.is_file():
        return False
    try:
        download.check(path, target.file.remote(record.checksum(target.key)))
    except download.Mismatch as error:
        raise download.Mismatch(f"{path} is not the published file: {error}") from error
    target.archive.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.archive.with_name(f"{target.file.name}.copy")
    fresh.unlink(missing_ok=True)
    try:
        os.link(path, fresh)
    except OSError:  # on another file system
        with whole(fresh):
            shutil.copyfile(path, fresh)
    fresh.replace(target.archive)
    _note(target, str(path.absolute()), record)
    return True


def fetch(target: Target, record: Record, progress: Progress) -> None:
    """Download a file to `target.archive`; raises as `loaders.download.fetch`."""
    remote = target.file.remote(record.checksum(target.key))
    address = download.fetch(remote, target.archive.parent, progress)
    if address or not record.knows(target.key):
        _note(target, address, record)


def unpack(target: Target, password: str = "") -> Iterator[tuple[int, int]]:
    """Bring an archive's content to its place. Yields how many members of a zip file are done.

    Raises ValueError naming a file that is damaged, or another password.
    """
    if target.file.unpack == "zip":
        yield from archives.unzip(target.archive, target.place, password)
    elif target.file.unpack == "labels":
        lines = "".join(f"{wnid}\n" for wnid in devkit.wnids(target.archive))
        write_atomic(target.place, lines.encode())
        target.archive.unlink()
    else:
        archives.to_tar(target.archive, target.place)


def _note(target: Target, address: str, record: Record) -> None:
    """Record where a file is from. A file without a published checksum gets one now."""
    file = target.file
    values: dict[str, Any] = {"from": address, "bytes": target.archive.stat().st_size}
    if file.sha256 or file.md5:
        values |= {"sha256": file.sha256} if file.sha256 else {"md5": file.md5}
    else:
        values["recorded_sha256"] = file_hash(target.archive)
    record.add(target.key, **values)


def missing(folder: Path, name: str, source: Source) -> list[Target]:
    """The files of a set whose content is not in the folder."""
    every = [Target(folder, name, source, file) for file in source.files]
    return [target for target in every if not target.place.exists()]


def set_names(sources: dict[str, Source]) -> list[str]:
    """All sets with a source, in the order of the benchmark."""
    return [name for name in imagenet.SIZES if name in sources]
