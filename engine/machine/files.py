"""Files that are written whole or not at all, and the folder of a user's downloads."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loaders import files
from loaders.files import sync


def cache_folder() -> Path:
    """Downloads that all runs of a user share: $RIB_CACHE, or ~/.cache/rib.

    Raises ValueError for a user without a home folder.
    """
    if chosen := os.environ.get("RIB_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "rib"
    except RuntimeError as error:  # a container's user may be in no /etc/passwd
        raise ValueError("this user has no home folder; set RIB_CACHE to a folder") from error


def runtime_folder() -> Path:
    """The user's folder on this machine for what running processes share; it is made if missing.

    Raises PermissionError where somebody else owns it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.access(runtime, os.W_OK):
        folder = Path(runtime) / "rib"
    else:
        folder = Path(tempfile.gettempdir()) / f"rib-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not yours; remove it, or set XDG_RUNTIME_DIR")
    return folder


def digest(key: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a key as canonical JSON."""
    return files.digest(key)[:16]


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: temporary name, fsync, rename.

    Raises IsADirectoryError, with a remedy, where a folder is in the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
    except IsADirectoryError as error:
        raise IsADirectoryError(
            f"{path} is a folder in place of a file; move it away and run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def room_for(file: Path) -> Iterator[None]:
    """Turn an OSError into one that names the file and says that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file} cannot be written ({error}); finished work is safe: make room, or its "
            "folder writable, and run the same command again"
        ) from error
