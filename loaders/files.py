"""Files that are hashed and on disk before anything names them, and the hash of a JSON value."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def canonical(value: Any) -> str:
    """The JSON text of a value, whatever the order of its keys; ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON text of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
