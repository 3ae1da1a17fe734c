"""Typed JSON files: damage raises an error that names the file.

A type is a dataclass, a NamedTuple, or a `msgspec.Struct` to reject unknown keys too. Types are
strict: a string is not a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loaders.files.durable import DamagedFile, digest, read_small
from loaders.files.root import READABLE, Root

T = TypeVar("T")
MOST_VALUES = 5_000_000  # of a file; in memory, a value takes up to 30 times its bytes
DIGEST = "sha256"  # key of the digest in files by `with_digest`


def read_json(path: Path, kind: type[T], remedy: str, root: Root | None = None) -> T:
    """Returns the content of a JSON file as `kind`. root: below it, links are not followed.

    Raises DamagedFile for invalid JSON, other types, something that is not a file, or more than
    `READABLE` bytes or `MOST_VALUES` values; FileNotFoundError if there is no file.
    """
    data = root.read(path) if root else read_small(path, READABLE)
    try:
        return decode(data, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); {remedy}") from error


def decode(data: bytes, kind: type[T]) -> T:
    """Returns JSON as `kind`. Raises msgspec.DecodeError for invalid JSON, other types, or more
    than `MOST_VALUES` values."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:  # each value follows one of them
        raise msgspec.DecodeError(f"more than {MOST_VALUES:,} values")
    return msgspec.json.decode(data, type=kind, dec_hook=_custom)


def convert(values: Any, kind: type[T], path: Path, remedy: str) -> T:
    """Returns parsed JSON as `kind`; `path`: the file that it came from. Raises DamagedFile."""
    try:
        return msgspec.convert(values, kind, dec_hook=_custom)
    except msgspec.ValidationError as error:
        raise DamagedFile(f"{path} is damaged ({error}); {remedy}") from error


def _custom(kind: Any, value: Any) -> Any:  # a Path
    return kind(value)


def with_digest(values: Mapping[str, Any]) -> bytes:
    """Returns the JSON of a file for `read_unaltered`. Values that JSON lacks become text."""
    plain = json.loads(json.dumps(values, default=str))
    return json.dumps(plain | {DIGEST: digest(plain)}, indent=1).encode()


def read_unaltered(path: Path, remedy: str, root: Root | None = None) -> dict[str, Any]:
    """Returns the values of a file by `with_digest`; for `root` see `read_json`.

    Raises as `read_json` does, and DamagedFile if the values were altered.
    """
    values = read_json(path, dict[str, Any], remedy, root)
    if values.pop(DIGEST, None) != digest(values):
        raise DamagedFile(f"{path} was altered; {remedy}")
    return values
