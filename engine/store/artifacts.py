"""The artefact store: a result stored under its name is never computed again.

An artefact is a folder `<root>/<kind>/<label>-<hash>`. The hash covers everything that determines
its content, including the names of upstream artefacts. It is written under a temporary name,
fsynced and renamed. `done.json` has the checksums and is the only proof that it is finished.
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
from loaders.files import typed_json
from loaders.files.durable import file_hash, sync
from loaders.files.names import InnerPath, is_name
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile

FORMAT = 2  # increment it when the meaning of stored artefacts changes
STORE = "store"  # folder name below a folder of runs
MARKER, UNFINISHED = "done.json", ".unfinished"  # in an artefact's folder
TEMPORARY = re.compile(r"\..+-[0-9a-f]{16}\.[0-9a-f]{8}")  # name of an unfinished artefact


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's size and SHA-256 (hexadecimal) in a marker."""

    bytes: int
    sha256: str


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `done.json`: format and key give the folder's name; `files` are by path."""

    format: int
    key: dict[str, Any]
    files: dict[InnerPath, StoredFile]


@dataclass(frozen=True)
class Artifact:
    """A finished artefact's folder, in the folder of its kind."""

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
        """The artefact's folder; it and the folders of its kind and store must not be links."""
        folder = self.folder.absolute()
        return Root(folder.parents[2]).below(folder)

    def has(self, name: str) -> bool:
        """Whether the artefact has this file."""
        return self.root.has(name)

    def file(self, name: str) -> Path:
        """Returns the path of a file. Raises FileNotFoundError if the artefact does not have it."""
        if not self.has(name):
            raise FileNotFoundError(f"{self.folder / name} is missing; {_again(self.folder)}")
        return self.root.file(name)

    def checked(self, name: str) -> Path:
        """Like `file`, but raises DamagedFile if the file was altered. A process hashes a file
        once.
        """
        path = self.file(name)
        stored = _marker(self.root).files.get(name)
        if stored is None or hash_once(path) != stored.sha256:
            raise DamagedFile(f"{path} was altered; {_again(self.folder)}")
        return path


def hash_once(path: Path) -> str:
    """Returns the SHA-256 of a file; a process reads the file again only if it was modified."""
    return _hash_once(path, path.stat().st_mtime_ns)


@functools.cache
def _hash_once(path: Path, modified_ns: int) -> str:
    return file_hash(path)


class Store:
    """Artefacts of all kinds below the folder `root`."""

    def __init__(self, root: Path | Root) -> None:
        """root: must not be a link itself, but its parent may be one."""
        self.files = root if isinstance(root, Root) else Root(root.parent, root.name)
        self.root = self.files.path

    def place(self, kind: str, label: str, key: Mapping[str, Any]) -> Path:
        """Returns the folder of the artefact of this key, finished or not.

        Raises DamagedFile if the kind or label cannot be a file name.
        """
        if not (is_name(kind) and is_name(label)):
            raise DamagedFile(f"{kind}/{label!r:.200} cannot be the name of an artefact")
        return self.root / kind / f"{label}-{short_digest({'format': FORMAT, **key})}"

    def find(self, kind: str, label: str, key: Mapping[str, Any]) -> Artifact | None:
        """Returns the finished artefact of this key, or None.

        Raises DamagedFile if the folder has another key or no files, or if a file is missing, has
        another size or is behind a link.
        """
        folder = self.place(kind, label, key)
        files = self.files.below(folder)
        if not files.has(MARKER):
            return None
        marker = _marker(files)
        if not folder.name.endswith(short_digest({"format": marker.format, **marker.key})):
            raise DamagedFile(f"{folder} has another key; {_again(folder)}")
        if not marker.files:
            raise DamagedFile(f"{folder} has no files except its marker; {_again(folder)}")
        for name, stored in marker.files.items():
            if files.size(name) != stored.bytes:
                raise DamagedFile(f"{folder / name} is damaged; {_again(folder)}")
        return Artifact(folder)

    def make(
        self, kind: str, label: str, key: Mapping[str, Any], build: Callable[[Path], object]
    ) -> Artifact:
        """Returns the artefact of this key; if there is none, `build(folder)` fills a temporary
        folder.

        Raises OSError naming the marker if the disk is full, FileNotFoundError if the temporary
        files were deleted meanwhile, and as `find` does.
        """
        if artifact := self.find(kind, label, key):
            return artifact
        folder = self.place(kind, label, key)
        new = self.files.below(folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}"))
        new.write(UNFINISHED, b"")
        try:
            try:
                build(new.path)
                # If the folder was deleted meanwhile and created again by a writer, it lacks files.
                is_whole = new.has(UNFINISHED) and len(new.files()) > 1
            except FileNotFoundError:
                if new.has(UNFINISHED):
                    raise
                is_whole = False
            if not is_whole:
                raise FileNotFoundError(
                    f"the files written to {new.path} are gone; run the same command again"
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
        """Deletes unfinished artefacts of killed processes that are older than `older_than_s`.

        Younger ones may be in use. Follows no links and touches no other names.
        """
        for kind in self.files.folders():
            for name in self.files.folders(kind):
                folder = self.files.below(f"{kind}/{name}")
                if not TEMPORARY.fullmatch(name) or not folder.has(UNFINISHED):
                    continue
                if time.time() - folder.path.stat().st_mtime > older_than_s:
                    self.files.remove(folder.path)

    def missing(self, kind: str, label: str, key: Mapping[str, Any]) -> FileNotFoundError:
        """The error for an artefact that a campaign should have made."""
        place = self.place(kind, label, key)
        return FileNotFoundError(f"{place} is missing: run the campaign again to make it")

    def remove(self, artifact: Artifact) -> None:
        """Deletes an artefact, its marker first, so that none is ever half finished."""
        self.files.remove(artifact.folder / MARKER)
        self.files.remove(artifact.folder)


def _marker(folder: Root) -> Marker:
    return typed_json.read(folder.path / MARKER, Marker, _again(folder.path), folder)


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
