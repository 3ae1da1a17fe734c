"""The drawing styles of emoji-RIB, with packages pinned and credited in `emoji.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A pinned package and its credits."""

    package: str
    version: str
    licence: str
    credit: str
    url: str


class Style(Package, frozen=True, kw_only=True):
    sha512: str
    kind: Literal["svg", "webp", "font"] = "svg"
    upstream: bool = False
    mono: bool = False


class Metadata(Package, frozen=True, kw_only=True):
    sha256: str
    wheel: str
    member: str


class _File(msgspec.Struct):
    styles: dict[str, Style]
    metadata: Metadata


_FILE = msgspec.yaml.decode(Path(__file__).with_name("emoji.yaml").read_bytes(), type=_File)
STYLES, METADATA = _FILE.styles, _FILE.metadata
ORIGINALS = ("twemoji", "openmoji")  # styles that derived datasets alter
DERIVED = ("outline", "blur", "colour", "low-contrast")  # `emoji_effects`
UPSTREAM = tuple(name for name, style in STYLES.items() if style.upstream)
DOWNSTREAM = tuple(name for name, style in STYLES.items() if not style.upstream)
