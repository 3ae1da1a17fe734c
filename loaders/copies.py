"""Encodes packs from bytes that are stored already, such as part of another pack."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.encode import encode
from loaders.pack import Item, Pack
from loaders.writer import Stored


@dataclass(frozen=True)
class Copies:
    """Encodes items as bytes that are stored already; read: gives those of a sample's number."""

    format: str
    shape: tuple[int, int]
    read: Callable[[int], bytes]

    def __call__(self, item: Item) -> Stored:
        blob = self.read(item.payload)
        return Stored(blob, zlib.crc32(blob), self.shape, "")


def part(pack: Pack, positions: Sequence[int], out: Path, *, extra: Mapping[str, Any]) -> Pack:
    """Copies the samples at these positions to the pack `out`, which keeps all of the pack's
    classes.

    Raises ValueError for a damaged sample, and errors of `loaders.encode.encode`.
    """
    return encode(
        out,
        name=pack.name,
        items=[
            Item(
                int(pack.labels[i]),
                str(pack.sources[i]),
                str(pack.keys[i]),
                payload=i,
                values=tuple(str(column[i]) for column in pack.columns.values()),
            )
            for i in positions
        ],
        columns=tuple(pack.columns),
        encoder=Copies(pack.format, pack.shape, pack.blob),
        transform_spec=pack.manifest["transform"],
        classes=pack.classes,
        source_fingerprint=pack.manifest["source_fingerprint"],
        extra=extra,
    )
