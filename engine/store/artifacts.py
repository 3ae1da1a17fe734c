"""The artefact store: what was computed once is found by name and never computed again.

An artefact is a folder `<root>/<kind>/<label>-<hash>`; the hash covers everything that determines
its content, upstream artefacts' names included. It is written under a temporary name, fsynced and
renamed; `done.json` holds the checksums and is the only proof that it is finished.
"""

from __future__ import annotations

import functools
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.machine.files import digest, file_hash, room_for, sync, write_atomic

FORMAT = 2  # raised when the meaning of stored artefacts changes
MARKER = "done.json"


@dataclass(frozen=True)
class Artifact:
    """A finished folder and the key that names it."""

    kind: str
    name: str
    folder: Path
    key: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """Path of one of its files; FileNotFoundError when the artefact has no such file."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {_again(self.folder)}")
        return path

    def checked(self, name: str) -> Path:
        """As `file`; ValueError if its bytes are not those it was made with (hashed once a run)."""
        path = self.file(name)
        marker = json.loads((self.folder / MARKER).read_text())
        if _hash_once(path) != marker["files"][name]["sha256"]:
            raise ValueError(f"{path} was altered; {_again(self.folder)}")
        return path


@functools.cache
def _hash_once(path: Path) -> str:
    return file_hash(path)


class Store:
    """Artefacts of all kinds below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, kind: str, label: str, key: Mapping[str, Any]) -> Path:
        """Where the artefact of this key lives, finished or not."""
        assert "/" not in kind and "/" not in label, (kind, label)
        return self.root / kind / f"{label}-{digest({'format': FORMAT, **key})}"

    def find(self, kind: str, label: str, key: Mapping[str, Any]) -> Artifact | None:
        """The finished artefact of this key, or None.

        Raises ValueError when a file of a finished artefact was cut or is missing, and for one that
        was put there under another's name.
        """
        folder = self.place(kind, label, key)
        marker = folder / MARKER
        if not marker.is_file():
            return None
        try:
            told = json.loads(marker.read_text())
            own, files = digest({"format": told["format"], **told["key"]}), told["files"].items()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{marker} is damaged; {_again(folder)}") from error
        if not folder.name.endswith(own):
            raise ValueError(f"{folder} was made of something else; {_again(folder)}")
        for name, entry in files:
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise ValueError(f"{path} is damaged; {_again(folder)}")
        return Artifact(kind, folder.name, folder, key)

    def make(
        self, kind: str, label: str, key: Mapping[str, Any], build: Callable[[Path], None]
    ) -> Artifact:
        """The artefact of this key; `build(folder)` fills a temporary folder if there is none.

        Raises OSError naming the marker where there is no room for it.
        """
        found = self.find(kind, label, key)
        if found is not None:
            return found
        folder = self.place(kind, label, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        temporary.mkdir()
        try:
            build(temporary)
            with room_for(folder / MARKER):
                _finish(temporary, key)
            self._rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Artifact(kind, folder.name, folder, key)

    @staticmethod
    def _rename(temporary: Path, folder: Path) -> None:
        if folder.is_dir() and not (folder / MARKER).is_file():
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process finished the same artefact first: its content is the same.
            if not (folder / MARKER).is_file():
                raise
        sync(folder.parent)


def _again(folder: Path) -> str:
    return f"delete {folder} and run the same command again, which makes it anew"


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
