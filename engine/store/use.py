"""A store's use: by commands, by runs folders that share it, and what killed commands left there.

Several runs folders share a store that is mounted in each. A runs folder has an identifier in
`.id`, which moves with the folder. Its store lists the folder as `used-by/IDENTIFIER.json`, with
its last known path, once a command makes artefacts there. So `rib gc` in one folder also keeps what
campaigns in another one need.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote_to_bytes

import msgspec

from engine.store.artifacts import KINDS, PENDING, TEMPORARY, Store
from loaders.files import locks, typed_json
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile

log = logging.getLogger(__name__)
IN_USE = ".in-use"  # lock file in a store
LEFT_OVER_S = 24 * 3600  # temporary files and folders that are younger may be in use
# In PENDING: a folder of an artefact's checkpoints or slices, or a file of its features.
_UNFINISHED = re.compile(r"[^.].*-[0-9a-f]{16}(\.npy)?")
ID = ".id"  # in a runs folder
USED_BY = "used-by"  # in a store
_END = ".json"
_IDENTIFIER = re.compile("[0-9a-f]{32}")


class Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A runs folder in its store's list. path: quoted as in a URL, since it may not be UTF-8. host:
    that of the command that listed it."""

    path: str
    host: str

    @property
    def folder(self) -> Path:
        return Path(os.fsdecode(unquote_to_bytes(self.path)))


@contextlib.contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Keeps `rib gc` from deleting artefacts; waits for one that is deleting them.

    Every process that makes artefacts, or finds them for others to use, enters. The store then
    lists its runs folder. Raises OSError if that cannot be written.
    """

    def wait() -> None:
        log.warning("waiting for `rib gc`, which deletes artefacts in %s", store.root)

    with locks.shared(store.root / IN_USE, wait, store.files):
        _enlist(store.files)
        yield


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """Keeps other processes out of a store. Raises ValueError if it is `in_use`."""

    def refuse() -> NoReturn:
        raise ValueError(f"another command is using {store.root}: wait until it ends")

    with locks.shared(store.root / IN_USE, refuse, store.files, alone=True):
        yield


def left_overs(store: Store, older_than_s: float = -math.inf) -> list[Path]:
    """The folders that killed processes were writing or deleting `older_than_s` ago.

    Younger ones may be in use, except in `alone`. Follows no links.
    """
    return [
        folder
        for kind in KINDS.intersection(store.files.folders())
        for folder in map((store.root / kind).joinpath, store.files.folders(kind))
        if TEMPORARY.fullmatch(folder.name) and time.time() - folder.lstat().st_mtime > older_than_s
    ]


def unfinished(store: Store) -> list[Path]:
    """Checkpoints, slices and features of artefacts that are not finished. Follows no links."""
    names = {file.partition("/")[0] for file in store.files.files(PENDING)}
    return [store.root / PENDING / name for name in sorted(filter(_UNFINISHED.fullmatch, names))]


def others(store: Store) -> tuple[dict[Path, Path], list[str]]:
    """The other runs folders that a store lists, with the files that list them; and why some cannot
    be looked through, each with a remedy."""
    runs, found, doubts = store.root.parent, dict[Path, Path](), list[str]()
    for name in store.files.names(USED_BY):
        identifier, file = name.removesuffix(_END), store.root / USED_BY / name
        if not _IDENTIFIER.fullmatch(identifier):
            continue
        try:
            listed = typed_json.read_json(file, Listed, f"delete {file}", store.files)
        except (OSError, DamagedFile) as error:
            doubts.append(str(error))
            continue
        folder = listed.folder
        if _is_another(folder, identifier, runs):
            found[folder] = file
        elif _identifier(folder) != identifier != _identifier(runs):
            doubts.append(
                f"{folder} on {listed.host} shares {store.root} and cannot be read here: mount "
                "its disk, run one of its campaigns again if the folder moved, or delete "
                f"{file} if it no longer needs the store"
            )
    return found, doubts


def list_again(store: Store) -> None:
    """Lists the runs folder at its new path if it moved, of a store that has a list. A command with
    nothing to make calls it, which may work in a folder that cannot be written."""
    if USED_BY in store.files.folders():
        with contextlib.suppress(OSError):
            _enlist(store.files)


def _enlist(store: Root) -> None:
    """Lists the runs folder above a store as its user. Raises OSError if it cannot be written."""
    runs = store.path.parent
    here = Listed(quote(os.fsencode(runs.resolve())), socket.gethostname())
    listed = _listed(store, _identifier(runs))
    if listed and listed.path == here.path:
        return
    with Root(runs).open(ID, "a+b") as file:
        with contextlib.suppress(OSError):  # a file system without flock
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        identifier = _checked(file.read(99))
        listed = _listed(store, identifier)
        if not identifier or (listed and _is_another(listed.folder, identifier, runs)):  # a copy
            identifier = uuid.uuid4().hex
            file.truncate(0)
            file.write(identifier.encode())
            file.flush()
            os.fsync(file.fileno())
    store.write(f"{USED_BY}/{identifier}{_END}", msgspec.json.encode(here))


def _is_another(folder: Path, identifier: str, runs: Path) -> bool:
    """Whether a folder with the identifier is there, and is not `runs` by another path."""
    return _identifier(folder) == identifier and not os.path.samefile(folder, runs)


def _identifier(runs: Path) -> str:
    """A runs folder's identifier; empty if it has none or cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return _checked(Root(runs).read(ID, 99))
    return ""


def _checked(text: bytes) -> str:
    identifier = text.decode(errors="replace")
    return identifier if _IDENTIFIER.fullmatch(identifier) else ""


def _listed(store: Root, identifier: str) -> Listed | None:
    """The runs folder that a store lists under an identifier; None if it lists none."""
    file = store.path / USED_BY / f"{identifier}{_END}"
    with contextlib.suppress(OSError, DamagedFile):
        return typed_json.read_json(file, Listed, "", store)
    return None
