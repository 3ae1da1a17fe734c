"""The artefact store: a result that is stored under its name is never computed again.

An artefact is a folder `<root>/<kind>/<label>-<hash>`; the hash covers everything that determines
its content, upstream artefacts' names included. It is written under a temporary name, fsynced and
renamed; `done.json` holds the checksums and is the only proof that it is finished.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.machine.files import digest, room_for, write_atomic
from loaders import schema
from loaders.files import file_hash, sync
from loaders.schema import DamagedFile

FORMAT = 2  # raised when the meaning of stored artefacts changes
MARKER = "done.json"
TEMPORARY = re.compile(r"\..+-[0-9a-f]{16}\.[0-9a-f]{8}")  # the folder of an unfinished artefact


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a marker says of a file: its size, and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `done.json`: format and key give the folder's name; `files` by their paths."""

    format: int
    key: dict[str, Any]
    files: dict[str, StoredFile]


@dataclass(frozen=True)
class Artifact:
    """A finished folder, which lies in that of its kind."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def kind(self) -> str:
        return self.folder.parent.name

    @property
    def proof(self) -> Path:
        """The marker, which is written last."""
        return self.folder / MARKER

    def file(self, name: str) -> Path:
        """Path of one of its files; FileNotFoundError when the artefact has no such file."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {_again(self.folder)}")
        return path

    def checked(self, name: str) -> Path:
        """As `file`, and DamagedFile where its bytes were changed (a process hashes
        a file once)."""
        path = self.file(name)
        stored = _marker(self.folder).files.get(name)
        if stored is None or _hash_once(path, path.stat().st_mtime_ns) != stored.sha256:
            raise DamagedFile(f"{path} was altered; {_again(self.folder)}")
        return path


@functools.cache
def _hash_once(path: Path, modified_ns: int) -> str:
    return file_hash(path)


class Store:
    """Artefacts of all kinds, below the folder `root`; with `finds_only` none is made."""

    def __init__(self, root: Path, *, finds_only: bool = False) -> None:
        self.root = root
        self.finds_only = finds_only

    def place(self, kind: str, label: str, key: Mapping[str, Any]) -> Path:
        """The folder of the artefact of this key, finished or not."""
        assert "/" not in kind and "/" not in label, (kind, label)
        return self.root / kind / f"{label}-{digest({'format': FORMAT, **key})}"

    def find(self, kind: str, label: str, key: Mapping[str, Any]) -> Artifact | None:
        """The finished artefact of this key, or None.

        Raises DamagedFile where it has no files, where one is missing or has another size, and
        where the folder is of another key.
        """
        folder = self.place(kind, label, key)
        if not (folder / MARKER).is_file():
            return None
        marker = _marker(folder)
        if not folder.name.endswith(digest({"format": marker.format, **marker.key})):
            raise DamagedFile(f"{folder} is of another key; {_again(folder)}")
        if not marker.files:
            raise DamagedFile(f"{folder} holds nothing but its marker; {_again(folder)}")
        for name, stored in marker.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != stored.bytes:
                raise DamagedFile(f"{path} is damaged; {_again(folder)}")
        return Artifact(folder)

    def make(
        self, kind: str, label: str, key: Mapping[str, Any], build: Callable[[Path], object]
    ) -> Artifact:
        """The artefact of this key; where there is none, `build(folder)` fills a temporary folder.

        Raises OSError naming the marker where the disk is full, and as `check_makes`.
        """
        if artifact := self.find(kind, label, key):
            return artifact
        self.check_makes(kind, label, key)
        folder = self.place(kind, label, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        temporary.mkdir()
        try:
            build(temporary)
            if not any(temporary.rglob("*")):
                raise FileNotFoundError(
                    f"the files that were written into {temporary} are gone; run the same command "
                    "again"
                )
            with room_for(folder / MARKER):
                _finish(temporary, key)
            if folder.is_dir() and not (folder / MARKER).is_file():
                shutil.rmtree(folder)
            try:
                temporary.rename(folder)
            except OSError:
                # Another process may have finished the same artefact; its content is the same.
                if not (folder / MARKER).is_file():
                    raise
            sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Artifact(folder)

    def remove_left_overs(self, older_than_s: float) -> None:
        """Delete unfinished artefacts of processes that were killed, and nothing else.

        A younger one may be in use. A link is not followed, and no other name is touched.
        """
        for kind in self.root.iterdir() if self.root.is_dir() else ():
            for folder in kind.iterdir() if kind.is_dir() and not kind.is_symlink() else ():
                if not TEMPORARY.fullmatch(folder.name) or folder.is_symlink():
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if folder.is_dir() and time.time() - folder.stat().st_mtime > older_than_s:
                        shutil.rmtree(folder, ignore_errors=True)

    def check_makes(self, kind: str, label: str, key: Mapping[str, Any]) -> None:
        """Raise FileNotFoundError, naming the missing artefact, if none is made here."""
        if self.finds_only:
            raise FileNotFoundError(
                f"{self.place(kind, label, key)} is missing: run the campaign again to make it"
            )

    def remove(self, artifact: Artifact) -> None:
        """Delete an artefact; its marker goes first, so that an interruption leaves none half."""
        (artifact.folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(artifact.folder, ignore_errors=True)


def _marker(folder: Path) -> Marker:
    return schema.read(folder / MARKER, Marker, _again(folder))


def _again(folder: Path) -> str:
    return f"delete {folder} and run the same command again"


def _finish(folder: Path, key: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync(path)
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_hash(path),
        }
    marker = {"format": FORMAT, "key": key, "files": files}
    write_atomic(folder / MARKER, json.dumps(marker, indent=1, sort_keys=True).encode())
