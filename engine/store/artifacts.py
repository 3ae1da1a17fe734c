"""The artefact store: a result that is stored under its name is never computed again.

An artefact is a folder `<root>/<kind>/<label>-<hash>`; the hash covers everything that determines
its content, upstream artefacts' names included. It is written under a temporary name, fsynced and
renamed; `done.json` holds the checksums and is the only proof that it is finished.
"""

from __future__ import annotations

import functools
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.machine.files import room_for, short_digest
from loaders import schema
from loaders.files import file_hash, sync
from loaders.names import InnerPath, is_name
from loaders.root import Root
from loaders.schema import DamagedFile

FORMAT = 2  # raised when the meaning of stored artefacts changes
STORE = "store"  # below a folder of runs
MARKER, UNFINISHED = "done.json", ".unfinished"  # in the folder of an artefact
TEMPORARY = re.compile(r"\..+-[0-9a-f]{16}\.[0-9a-f]{8}")  # the name of an unfinished one


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's size and SHA-256 (hexadecimal) in a marker."""

    bytes: int
    sha256: str


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `done.json`: format and key give the folder's name; `files` by their paths."""

    format: int
    key: dict[str, Any]
    files: dict[InnerPath, StoredFile]


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

    @property
    def root(self) -> Root:
        """Its folder; neither that nor those of its kind and its store may be links."""
        folder = self.folder.absolute()
        return Root(folder.parents[2]).below(folder)

    def has(self, name: str) -> bool:
        """Whether it has such a file."""
        return self.root.has(name)

    def file(self, name: str) -> Path:
        """Path of one of its files; FileNotFoundError when the artefact has no such file."""
        if not self.has(name):
            raise FileNotFoundError(f"{self.folder / name} is missing; {_again(self.folder)}")
        return self.root.file(name)

    def checked(self, name: str) -> Path:
        """As `file`, and DamagedFile where its bytes were changed (a process hashes
        a file once)."""
        path = self.file(name)
        stored = _marker(self.root).files.get(name)
        if stored is None or hash_once(path) != stored.sha256:
            raise DamagedFile(f"{path} was altered; {_again(self.folder)}")
        return path


def hash_once(path: Path) -> str:
    """SHA-256 of a file; a process reads the file again only if it was modified."""
    return _hash_once(path, path.stat().st_mtime_ns)


@functools.cache
def _hash_once(path: Path, modified_ns: int) -> str:
    return file_hash(path)


class Store:
    """Artefacts of all kinds, below the folder `root`; with `finds_only` none is made."""

    def __init__(self, root: Path | Root, *, finds_only: bool = False) -> None:
        """root: itself no link, but what it is in may be one."""
        self.files = root if isinstance(root, Root) else Root(root.parent, root.name)
        self.root = self.files.path
        self.finds_only = finds_only

    def place(self, kind: str, label: str, key: Mapping[str, Any]) -> Path:
        """The folder of the artefact of this key, finished or not."""
        if not (is_name(kind) and is_name(label)):
            raise DamagedFile(f"{kind}/{label!r:.200} cannot be the name of an artefact")
        return self.root / kind / f"{label}-{short_digest({'format': FORMAT, **key})}"

    def find(self, kind: str, label: str, key: Mapping[str, Any]) -> Artifact | None:
        """The finished artefact of this key, or None.

        Raises DamagedFile where it has no files, where one is missing, has another size or lies
        behind a link, and where the folder is of another key.
        """
        folder = self.place(kind, label, key)
        files = self.files.below(folder)
        if not files.has(MARKER):
            return None
        marker = _marker(files)
        if not folder.name.endswith(short_digest({"format": marker.format, **marker.key})):
            raise DamagedFile(f"{folder} is of another key; {_again(folder)}")
        if not marker.files:
            raise DamagedFile(f"{folder} holds nothing but its marker; {_again(folder)}")
        for name, stored in marker.files.items():
            if files.size(name) != stored.bytes:
                raise DamagedFile(f"{folder / name} is damaged; {_again(folder)}")
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
        new = self.files.below(folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}"))
        new.write(UNFINISHED, b"")
        try:
            try:
                build(new.path)
                # A folder that was deleted meanwhile, and made anew by what writes, lacks files.
                is_whole = new.has(UNFINISHED) and len(new.files()) > 1
            except FileNotFoundError:
                if new.has(UNFINISHED):
                    raise
                is_whole = False
            if not is_whole:
                raise FileNotFoundError(
                    f"the files that were written into {new.path} are gone; run the same command "
                    "again"
                )
            new.remove(UNFINISHED)
            with room_for(folder / MARKER):
                _finish(new, key)
            if not self.files.has(folder / MARKER):
                self.files.remove(folder)
            try:
                self.files.rename(new.path, folder)
            except OSError:
                # Another process may have finished the same artefact; its content is the same.
                if not self.files.has(folder / MARKER):
                    raise
        finally:
            self.files.remove(new.path)
        return Artifact(folder)

    def remove_left_overs(self, older_than_s: float) -> None:
        """Delete unfinished artefacts of processes that were killed, and nothing else.

        A younger one may be in use. A link is not followed, and no other name is touched.
        """
        for kind in self.files.folders():
            for name in self.files.folders(kind):
                folder = self.files.below(f"{kind}/{name}")
                if not TEMPORARY.fullmatch(name) or not folder.has(UNFINISHED):
                    continue
                if time.time() - folder.path.stat().st_mtime > older_than_s:
                    self.files.remove(folder.path)

    def check_makes(self, kind: str, label: str, key: Mapping[str, Any]) -> None:
        """Raise FileNotFoundError, naming the missing artefact, if none is made here."""
        if self.finds_only:
            raise FileNotFoundError(
                f"{self.place(kind, label, key)} is missing: run the campaign again to make it"
            )

    def remove(self, artifact: Artifact) -> None:
        """Delete an artefact; its marker goes first, so that an interruption leaves none half."""
        self.files.remove(artifact.folder / MARKER)
        self.files.remove(artifact.folder)


def _marker(folder: Root) -> Marker:
    return schema.read(folder.path / MARKER, Marker, _again(folder.path), folder)


def _again(folder: Path) -> str:
    return f"delete {folder} and run the same command again"


def _finish(folder: Root, key: Mapping[str, Any]) -> None:
    files = {}
    for name in folder.files():
        path = folder.file(name)
        sync(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    marker = {"format": FORMAT, "key": key, "files": files}
    folder.write(MARKER, json.dumps(marker, indent=1, sort_keys=True).encode())
