"""Datasets in a folder: which files are downloaded, and how they are unpacked.

    FOLDER/downloads.json     accepted terms
    FOLDER/.downloads/        incomplete files, and archives to unpack
    FOLDER/<set>/             uncompressed archives, or the content of a zip file

Files in a dataset's folder are complete and checked.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from engine.data.sources import SetFile, Source
from engine.machine.files import write_atomic
from loaders.benchmarks import imagenet
from loaders.fetch import archives, download
from loaders.files import locks, typed_json
from loaders.files.durable import sync, whole
from loaders.files.root import Root

ARRIVING = ".downloads"
RECORD = "downloads.json"


@dataclass(frozen=True)
class Target:
    """A file of the dataset `name` that belongs in a folder."""

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
        """The file's path until it is unpacked."""
        return self.folder / ARRIVING / self.name / self.file.name

    @property
    def arrived(self) -> int:
        """Bytes that earlier calls downloaded."""
        paths = (self.archive, self.archive.with_name(f"{self.file.name}.part"))
        return next((path.stat().st_size for path in paths if path.is_file()), 0)


@dataclass(frozen=True)
class _Record:
    accepted: dict[str, str]  # terms by dataset, as they were when the user accepted them


def accepted(folder: Path) -> dict[str, str]:
    """The terms that the user accepted for a folder, by dataset. Raises DamagedFile."""
    try:
        record = typed_json.read_json(
            folder / RECORD, _Record, "remove it, and accept the terms again"
        )
    except FileNotFoundError:
        return {}
    return record.accepted


def accept(folder: Path, terms: Mapping[str, str]) -> None:
    """Record the terms that the user accepts now, by dataset."""
    record = {"accepted": accepted(folder) | dict(terms)}
    write_atomic(folder / RECORD, json.dumps(record, indent=1).encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder. Raises ValueError if it is locked."""

    def refuse() -> NoReturn:
        raise ValueError(
            f"another `rib download` is using {folder}: wait until it ends, or give another folder "
            "with --to"
        )

    with locks.held(folder / ARRIVING / "lock", refuse):
        yield


def take(target: Target, folder: Path) -> None:
    """Link or copy a file that the user has in `folder`, if it exists.

    Raises Mismatch if it is not the published file.
    """
    path = folder / target.file.name
    if not path.is_file():
        return
    try:
        download.check(path, target.file.remote)
    except download.Mismatch as error:
        raise download.Mismatch(f"{path} is not the published file: {error}") from error
    target.archive.parent.mkdir(parents=True, exist_ok=True)
    arriving = Root(target.archive.parent)
    fresh = target.archive.with_name(f"{target.file.name}.copy")
    arriving.remove(fresh)
    try:
        os.link(path.resolve(), fresh)  # of a link the file: the link may be relative
    except OSError:  # on another file system
        with whole(fresh):
            shutil.copyfile(path, fresh)
        sync(fresh)
    arriving.rename(fresh, target.archive)


def unpack(target: Target, password: str = "") -> Iterator[tuple[int, int]]:
    """Unpack an archive. Yields the progress through a zip file's members.

    Raises ValueError, naming the file, if it is damaged or the password is wrong.
    """
    if target.file.unpack == "zip":
        yield from archives.unzip(target.archive, target.place, password)
    elif target.file.unpack == "labels":
        lines = "".join(f"{wnid}\n" for wnid in imagenet.wnids_of_kit(target.archive))
        write_atomic(target.place, lines.encode())
        Root(target.archive.parent).remove(target.archive)
    else:
        archives.to_tar(target.archive, target.place)


def missing(folder: Path, name: str, source: Source) -> list[Target]:
    """The files of a dataset that are missing from the folder."""
    every = [Target(folder, name, source, file) for file in source.files]
    return [target for target in every if not target.place.exists()]
