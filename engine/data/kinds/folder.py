"""Users' datasets: one folder of images per class."""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path

import numpy as np

from engine.data.kinds.base import Kind
from loaders import folders
from loaders.trees import Listing, first_names

log = logging.getLogger(__name__)


class Folder(Kind):
    """Each dataset is at `<dataset.root>/<set>`, in folders or shards (`loaders.folders`)."""

    def listing(self, name: str, cache: Path) -> Listing:
        listing = folders.read(self._root(name))
        if listing.left_out:
            log.warning(
                "%s: left out, because not <class>/<image>: %s", name, first_names(listing.left_out)
            )
        self._warn_of_shared_sources(name, {item.source for item in listing.items})
        return listing

    def counts(self, name: str) -> tuple[int, int]:
        listing = folders.read(self._root(name))
        return len(listing.items), len(listing.classes)

    def photos(self, name: str) -> frozenset[str]:
        return _photos(self._root(name))

    def fingerprint(self, name: str) -> str | None:
        root = self._root(name)
        return folders.read(root).fingerprint if root.is_dir() else None

    def needs_command(self, name: str) -> bool:
        folders.read(self._root(name))
        return False

    def _root(self, name: str) -> Path:
        return Path(self.dataset.root) / name

    def _warn_of_shared_sources(self, name: str, sources: set[str]) -> None:
        """Log which earlier datasets have images with the same class and file name."""
        known, shared = self.dataset.known, dict[str, set[str]]()
        for other in known[: known.index(name)] if name in known else ():
            with contextlib.suppress(ValueError):  # encoding that dataset raises it
                listing = folders.read(self._root(other))
                shared[other] = sources & {item.source for item in listing.items}
        if named := {other: images for other, images in shared.items() if images}:
            log.warning(
                "%s: images have the same class and file name as images in %s, such as %s. They "
                "count as copies of one source image; if they are not, rename them",
                name,
                ", ".join(f"{other} ({len(images)})" for other, images in named.items()),
                min(min(images) for images in named.values()),
            )


@functools.cache
def _photos(root: Path) -> frozenset[str]:
    items = folders.read(root).items
    sources, labels = [item.source for item in items], [item.label for item in items]
    from engine.measures import relations  # late: planning imports no pandas

    return relations.photos(np.array(sources), np.array(labels))
