"""Files that are hashed and on disk before anything names them, and the hash of a JSON value."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

MOST = 1 << 20  # bytes of a file that people write by hand
HOLLOW = 1 << 30  # bytes; a file from this size on has at least 1% of them on the disk


class DamagedFile(ValueError):
    """A stored file that is not as it was written; the message names it, and a remedy."""


def check_regular(descriptor: int, path: Path) -> None:
    """Raise DamagedFile for a folder, and for what may never end: a pipe, a socket, a device, and a
    file of which almost nothing is on the disk."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise DamagedFile(f"{path} is a folder in place of a file; move it away")
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFile(f"{path} is a pipe, a socket or a device, not a file; remove it")
    if status.st_size > HOLLOW and status.st_blocks * 512 < status.st_size / 100:
        raise DamagedFile(f"{path} has {status.st_size:,} bytes, almost all a hole; delete it")


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Around what writes a new file: where that fails, the half of it is removed.

    An OSError, as of a full disk, then names the file and a remedy.
    """
    try:
        yield
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                f"{path.name} could not be written ({error.strerror or error}); make room in "
                f"{path.parent}, or make it writable, and run the same command again"
            ) from error
        raise


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """A file to read, which a link may lead to. Raises as `check_regular`; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_regular(descriptor, path)
    except DamagedFile:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_small(path: Path, most: int = MOST) -> bytes:
    """The bytes of a file that people, or programs for people, wrote.

    Raises DamagedFile for more than `most` bytes, and for a pipe, a socket or a device, which might
    never end; OSError where there is no such file.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DamagedFile(f"{path} has more than {most:,} bytes; is it the right file?")
    return data


def read_json(path: Path) -> Any:
    """The value in a small JSON file; ValueError naming it for anything else, as `read_small`."""
    try:
        return json.loads(read_small(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error


def canonical(value: Any) -> str:
    """The JSON text of a value, whatever the order of its keys; ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON text of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
