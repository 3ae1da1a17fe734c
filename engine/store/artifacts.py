"""The artefact store: a result stored under its name is never computed again.

An artefact is a folder `<root>/<kind>/<label>-<hash>`. The hash covers everything that determines
its content, including the names of upstream artefacts. It is written under a temporary name,
fsynced and renamed. `done.json` has the checksums and is the only proof that it is finished.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.machine.files import room_for
from engine.recipe import finder
from engine.store import made_by
from loaders.files import typed_json
from loaders.files.durable import file_hash, short_digest, sync
from loaders.files.names import InnerPath, is_name
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile

FORMAT = 3  # increment it when the meaning of stored artefacts changes
STORE = "store"  # folder name below a folder of runs
EXTRAS = "extras"  # kind of all artefacts of extras, whose labels begin with the extra's name
KINDS = {
    *("cells", "weights", "snapshots", "predictions"),
    *("features", "fisher", "distances", EXTRAS),
}
APART = KINDS - {"snapshots"}  # kinds kept apart after a user's method ran; see `Store`
MARKER, UNFINISHED = "done.json", ".unfinished"  # in an artefact's folder
# The name of an artefact that is being written or deleted.
TEMPORARY = re.compile(r"\..+-[0-9a-f]{16}\.[0-9a-f]{8}")
PENDING = "pending"  # folder in a store, of what makes an artefact and can be resumed


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's size and SHA-256 (hexadecimal) in a marker."""

    bytes: int
    sha256: str


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `done.json`: format and key give the folder's name; `files` are by path;
    `made_by` is `engine.store.made_by.here`."""

    format: int
    key: dict[str, Any]
    files: dict[InnerPath, StoredFile]
    made_by: dict[str, str]


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
        stored = read_marker(self.root).files.get(name)
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
    """Artefacts of all kinds below the folder `root`.

    A user's method file can change what any later code in its process computes. What such a process
    makes, other than cells whose keys have the method's digest and their snapshots, gets a name
    with the digest, so that no other process takes it. It finds what clean processes made.
    """

    def __init__(self, root: Path | Root, generation: int = 0) -> None:
        """root: must not be a link itself, but its parent may be one. generation: of the recipe;
        artefacts of another one are not found."""
        self.generation = generation
        self.files = root if isinstance(root, Root) else Root(root.parent, root.name)
        self.root = self.files.path

    def place(self, kind: str, label: str, key: Mapping[str, Any]) -> Path:
        """Returns the folder of the artefact of this key, finished or not.

        Raises DamagedFile if the kind or label cannot be a file name.
        """
        if not (is_name(kind) and is_name(label)):
            raise DamagedFile(f"{kind}/{label!r:.200} cannot be the name of an artefact")
        return self._folder(kind, label, self._whole(kind, label, key))

    def find(self, kind: str, label: str, key: Mapping[str, Any]) -> Artifact | None:
        """Returns the finished artefact of this key, or None.

        Raises DamagedFile if the folder has another key or no files, or if a file is missing, has
        another size or is behind a link.
        """
        folder = self.place(kind, label, key)
        files = self.files.below(folder)
        if not files.has(MARKER):
            return None
        marker = read_marker(files)
        if not _has_key(folder, marker):
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

        Raises OSError naming the marker or the folder if the disk is full, FileNotFoundError if the
        temporary files were deleted meanwhile, and as `find` does.
        """
        if artifact := self.find(kind, label, key):
            return artifact
        key = self._whole(kind, label, key)
        folder = self._folder(kind, label, key)
        new = self.files.below(_temporary(folder))
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
                with room_for(folder):
                    self.files.rename(new.path, folder)
            except OSError:
                # Another process may have finished the same artefact; its content is the same.
                if not self.files.has(folder / MARKER):
                    raise
        finally:
            self.files.remove(new.path)
        return Artifact(folder)

    def _whole(self, kind: str, label: str, key: Mapping[str, Any]) -> dict[str, Any]:
        whole = {**key, "generation": self.generation} if self.generation else {**key}
        others = sorted(digest for digest in finder.methods_run if digest not in str(key))
        if not others or kind not in APART:
            return whole
        is_clean = self.files.has(self._folder(kind, label, whole) / MARKER)
        return whole if is_clean else {**whole, "users_methods": others}

    def _folder(self, kind: str, label: str, key: Mapping[str, Any]) -> Path:
        return self.root / kind / f"{label}-{short_digest({'format': FORMAT, **key})}"

    def artifacts(self) -> Iterator[tuple[Artifact, Marker]]:
        """The finished artefacts, with their markers.

        Skips what the engine did not make in its place: links, other kinds and names, and folders
        whose marker is damaged or has another key.
        """
        for kind in KINDS.intersection(self.files.folders()):
            for name in self.files.folders(kind):
                folder = self.root / kind / name
                with contextlib.suppress(OSError, DamagedFile):
                    marker = read_marker(self.files.below(folder))
                    if _has_key(folder, marker):
                        yield Artifact(folder), marker

    def missing(self, kind: str, label: str, key: Mapping[str, Any]) -> FileNotFoundError:
        """The error for an artefact that a campaign should have made."""
        place = self.place(kind, label, key)
        return FileNotFoundError(f"{place} is missing: run the campaign again to make it")

    def remove(self, artifact: Artifact) -> None:
        """Deletes an artefact, under a temporary name, so that none is ever half finished."""
        with contextlib.suppress(FileNotFoundError):
            self.files.remove(self.files.rename(artifact.folder, _temporary(artifact.folder)))


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")


def _has_key(folder: Path, marker: Marker) -> bool:
    digest = short_digest({"format": marker.format, **marker.key})
    return folder.name.endswith(f"-{digest}")


def read_marker(folder: Root) -> Marker:
    """The marker in an artefact's folder. Raises DamagedFile, FileNotFoundError."""
    return typed_json.read_json(folder.path / MARKER, Marker, _again(folder.path), folder)


def _again(folder: Path) -> str:
    return f"delete {folder} and run the same command again"


def _finish(folder: Root, key: Mapping[str, Any]) -> None:
    files = {}
    for name in folder.files():
        path = folder.file(name)
        sync(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    marker = {"format": FORMAT, "key": key, "files": files, "made_by": made_by.here()}
    folder.write(MARKER, json.dumps(marker, indent=1, sort_keys=True).encode())
