"""JSON files that are read back: each has a type, and damage ends in a line that names the file.

A type is a dataclass, a NamedTuple, or a `msgspec.Struct` where keys without a field are refused
too. Types are strict: a string is not a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loaders.files import DamagedFile, digest, read_small
from loaders.root import READABLE, Root

T = TypeVar("T")
DIGEST = "sha256"  # of all other values of a file that `with_digest` made


def read(path: Path, kind: type[T], remedy: str, root: Root | None = None) -> T:
    """The content of a JSON file as `kind`; below `root`, where no link leads to it.

    Raises DamagedFile for text that is not JSON or has other types, and for what is not a file or
    has more than `READABLE` bytes; FileNotFoundError.
    """
    try:
        values = msgspec.json.decode(root.read(path) if root else read_small(path, READABLE))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); {remedy}") from error
    return convert(values, kind, path, remedy)


def convert(values: Any, kind: type[T], path: Path, remedy: str) -> T:
    """Parsed JSON as `kind`; `path`: of the file that it was read from. Raises as `read`."""
    try:
        return msgspec.convert(values, kind, dec_hook=lambda custom, value: custom(value))  # a Path
    except msgspec.ValidationError as error:
        raise DamagedFile(f"{path} is damaged ({error}); {remedy}") from error


def with_digest(values: Mapping[str, Any]) -> bytes:
    """The JSON of a file that `read_unaltered` reads; what JSON does not know becomes text."""
    plain = json.loads(json.dumps(values, default=str))
    return json.dumps(plain | {DIGEST: digest(plain)}, indent=1).encode()


def read_unaltered(path: Path, remedy: str, root: Root | None = None) -> dict[str, Any]:
    """The values of a file by `with_digest`; root: as of `read`.

    Raises as `read`, and DamagedFile for values that were altered.
    """
    values = read(path, dict[str, Any], remedy, root)
    if values.pop(DIGEST, None) != digest(values):
        raise DamagedFile(f"{path} was altered; {remedy}")
    return values
