"""Users' datasets: one folder of images per class."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.kinds.base import Kind
from loaders import folders, trees
from loaders.trees import Listing, Place, first_names

log = logging.getLogger(__name__)
LOOKED_FOR = 32  # files of a dataset, at even steps


class Folder(Kind):
    """Each dataset is at `<dataset.root>/<set>`, in folders or shards (`loaders.folders`)."""

    def listing(self, name: str, cache: Path) -> Listing:
        listing = folders.read(self._root(name))
        if listing.left_out:
            log.warning(
                "%s: left out, because not <class>/<image>: %s", name, first_names(listing.left_out)
            )
        if self._names_are_sources:
            return listing
        items = [dataclasses.replace(item, source=f"{name}/{item.key}") for item in listing.items]
        return dataclasses.replace(listing, items=items)

    def counts(self, name: str) -> tuple[int, int]:
        listing = folders.read(self._root(name))
        return len(listing.items), len(listing.classes)

    def photos(self, name: str) -> frozenset[str]:
        return _photos(self._root(name)) if self._names_are_sources else frozenset([name])

    def identity(self, name: str) -> dict[str, Any]:
        return super().identity(name) | {"sources": self.dataset.sources}

    def fingerprint(self, name: str) -> str | None:
        root = self._root(name)
        return folders.read(root).fingerprint if root.is_dir() else None

    def needs_command(self, name: str) -> bool:
        folders.read(self._root(name))
        return False

    def shares_files(self, name: str, other: str) -> bool:
        """Looks for some of the other dataset's files by their bytes; rows of parquet files are not
        compared."""
        files = [item.payload for item in folders.read(self._root(other)).items]
        places: dict[int, list[Place]] = {}
        for item in folders.read(self._root(name)).items:
            if isinstance(item.payload, Place):
                places.setdefault(item.payload.bytes, []).append(item.payload)
        return any(
            trees.read(file) == trees.read(place)
            for file in files[:: -(-len(files) // LOOKED_FOR)]
            if isinstance(file, Place)
            for place in places.get(file.bytes, ())
        )

    def remarks(self) -> list[str]:
        """Which datasets have images with the same class and file name as earlier ones."""
        remarks: list[str] = []
        sources: dict[str, set[str]] = {}
        for name in self.dataset.known:
            with contextlib.suppress(ValueError):  # encoding that dataset raises it
                sources[name] = {item.source for item in folders.read(self._root(name)).items}
                shared = {other: sources[name] & sources[other] for other in sources}
                del shared[name]
                if named := {other: images for other, images in shared.items() if images}:
                    remarks.append(self._remark(name, named))
        return remarks

    def _remark(self, name: str, shared: Mapping[str, Set[str]]) -> str:
        others = ", ".join(f"{other} ({len(images)})" for other, images in shared.items())
        remark = (
            f"{name}: images have the same class and file name as images in {others}, such as "
            f"{min(map(min, shared.values()))}. "
        )
        if self._names_are_sources:
            return remark + (
                "They count as copies of one photo; if they are not, set dataset.sources=own"
            )
        return remark + (
            "They count as different photos; if they show the same ones, set dataset.sources=names"
        )

    @property
    def _names_are_sources(self) -> bool:
        return self.dataset.sources == "names"

    def _root(self, name: str) -> Path:
        return Path(self.dataset.root) / name


@functools.cache
def _photos(root: Path) -> frozenset[str]:
    items = folders.read(root).items
    sources, labels = [item.source for item in items], [item.label for item in items]
    from engine.measures import disjoint

    return disjoint.photos(np.array(sources), np.array(labels))
