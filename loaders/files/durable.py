"""Durable files, bounded reads, and hashes of files and JSON values."""

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

MOST = 1 << 20  # maximum bytes of a file written by hand
HOLLOW = 1 << 30  # bytes; a larger file must have at least 1% of them on disk


class DamagedFile(ValueError):
    """A stored file was altered or damaged; the message names it and a remedy."""


def check_regular(descriptor: int, path: Path) -> None:
    """Raises DamagedFile for a folder, and for what might never end: a pipe, a socket, a device,
    and a file that is almost all a hole."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise DamagedFile(f"{path} is a folder, not a file; move it away")
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFile(f"{path} is a pipe, a socket or a device, not a file; remove it")
    if status.st_size > HOLLOW and status.st_blocks * 512 < status.st_size / 100:
        raise DamagedFile(f"{path} has {status.st_size:,} bytes, almost all a hole; delete it")


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Removes a new, incomplete file if the block that writes it fails.

    An OSError, such as a full disk, then names the file and a remedy.
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
    """Waits until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Returns the hexadecimal hash of a file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """Opens a file for reading, following links. Raises as `check_regular` does; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_regular(descriptor, path)
    except DamagedFile:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_small(path: Path, most: int = MOST) -> bytes:
    """Returns the bytes of a file written by hand or for people.

    Raises DamagedFile for more than `most` bytes, and for something that is not a regular file;
    OSError if there is no such file.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DamagedFile(f"{path} has more than {most:,} bytes; is it the right file?")
    return data


def read_json(path: Path) -> Any:
    """Returns the value of a small JSON file. Raises ValueError naming it, or as `read_small`."""
    try:
        return json.loads(read_small(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error


def canonical(value: Any) -> str:
    """Returns the JSON text of a value with sorted keys. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Returns the hexadecimal SHA-256 of a value's canonical JSON text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def short_digest(value: Any) -> str:
    """Returns the first 16 hexadecimal digits of `digest`."""
    return digest(value)[:16]
