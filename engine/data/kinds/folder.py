"""Users' datasets: one folder of images per class."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.data.kinds import base
from engine.recipe.schema import PACK, DatasetRecipe, marked
from loaders import folders, tables, trees
from loaders.files.durable import canonical, digest
from loaders.trees import Listing, Place, first_names


@dataclass(frozen=True)
class Recipe(DatasetRecipe):
    # images that count as copies of one photo. own: none; names: those with the same class and file
    # name, in all datasets
    sources: Literal["own", "names"] = "own"
    # names of the folders above the classes', such as [corruption, severity]; kept with the images
    columns: list[str] = marked(PACK, list)

    @property
    def knows_photos(self) -> bool:
        return self.sources == "names"


log = logging.getLogger(__name__)
LOOKED_FOR = 32  # files of a dataset, at even steps
_photos: dict[str, frozenset[str]] = {}  # by dataset


class Kind(base.Kind):
    """A dataset at `<dataset.root>/<set>`, in folders or shards (`loaders.folders`)."""

    dataset: Recipe

    def read(self, source: Path | None = None) -> Listing:
        """The images as they lie there; copies have a common source, if the recipe says so."""
        listing, split = (
            folders.list_folders(source or self.root, self.dataset.columns),
            self.dataset.split,
        )
        if not split.files:
            return listing
        files = split.files if isinstance(split.files, dict) else {"": split.files}
        places = {value: Path(self.dataset.root) / file for value, file in files.items()}
        keys = [f"{self.name}/{item.key}" for item in listing.items]
        among = (*split.train, *split.holdout)
        values = tables.listed(places, split.column, among, keys, self.name)
        items = [
            dataclasses.replace(item, values=(*item.values, value))
            for item, value in zip(listing.items, values, strict=True)
        ]
        return dataclasses.replace(
            listing,
            items=items,
            fingerprint=digest([listing.fingerprint, values]),
            columns=(*listing.columns, split.column),
        )

    def listing(self, cache: Path, source: Path | None = None, *, partial: bool = False) -> Listing:
        listing = self.read(source)
        if listing.left_out:
            shown = first_names(listing.left_out)
            log.warning("%s: left out, because not <class>/<image>: %s", self.name, shown)
        if self.dataset.knows_photos:
            return listing
        items = [
            dataclasses.replace(item, source=f"{self.name}/{item.key}") for item in listing.items
        ]
        return dataclasses.replace(listing, items=items)

    def counts(self) -> tuple[int, int]:
        """Numbers of the images there or, without a folder, the published ones."""
        if published := self._published():
            return published
        listing = self.read()
        return len(listing.items), len(listing.classes)

    def held_out(self) -> int:
        """Of the same images as `counts`."""
        split = self.dataset.split
        if self._published() or not split.column:
            return split.held_out
        listing = self.read()
        place = listing.columns.index(split.column)
        return sum(item.values[place] in split.holdout for item in listing.items)

    def _published(self) -> tuple[int, int] | None:
        numbers = self.dataset.images, self.dataset.class_count
        is_there = self.dataset.root and self.root.exists()  # a table's root without one is `.`
        return numbers if all(numbers) and not is_there else None

    def photos(self) -> frozenset[str]:
        if not (self.dataset.knows_photos and self.root.exists()):
            return super().photos()
        place = canonical([self.name, self.identity()])
        if place not in _photos:  # plans ask for each pair of datasets
            items = self.read().items
            sources, labels = [item.source for item in items], [item.label for item in items]
            from loaders.pack import photos

            _photos[place] = photos(np.array(sources), np.array(labels))
        return _photos[place]

    def identity(self) -> dict[str, Any]:
        files = self.dataset.split.files
        listed = {"split": [files, self.dataset.split.column]} if files else {}
        return super().identity() | {"sources": self.dataset.sources} | listed

    def fingerprint(self) -> str | None:
        return self.read().fingerprint if self.root.exists() else None

    def needs_command(self) -> bool:
        self.read()
        return False

    def shares_files(self, other: base.Kind) -> bool:
        """Looks for some of the other dataset's files by their bytes; rows of parquet files are not
        compared."""
        if not isinstance(other, Kind):
            return False
        files = [item.payload for item in other.read().items]
        places: dict[int, list[Place]] = {}
        for item in self.read().items:
            if isinstance(item.payload, Place):
                places.setdefault(item.payload.bytes, []).append(item.payload)
        return any(
            trees.read_image(file) == trees.read_image(place)
            for file in files[:: -(-len(files) // LOOKED_FOR)]
            if isinstance(file, Place)
            for place in places.get(file.bytes, ())
        )

    def remarks(self, others: Sequence[base.Kind]) -> list[str]:
        """Which datasets have images with the same class and file name as earlier ones."""
        folders = [other for other in others if isinstance(other, Kind)]
        every = {other.name: self.sources & other.sources for other in folders}
        shared = {name: images for name, images in every.items() if images}
        if not shared:
            return []
        named = ", ".join(f"{name} ({len(images)})" for name, images in shared.items())
        meaning = "different photos; if they show the same ones, set dataset.sources=names"
        if self.dataset.knows_photos:
            meaning = "copies of one photo; if they are not, set dataset.sources=own"
        return [
            f"{self.name}: images have the same class and file name as images in {named}, such as "
            f"{min(map(min, shared.values()))}. They count as {meaning}"
        ]

    @functools.cached_property
    def sources(self) -> frozenset[str]:
        """The sources of the images as read; empty if they cannot be read, which encoding says."""
        with contextlib.suppress(ValueError):
            return frozenset(item.source for item in self.read().items)
        return frozenset()

    @property
    def root(self) -> Path:
        return Path(self.dataset.root) / self.name
