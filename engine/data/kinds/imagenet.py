"""The datasets of ImageNet-RIB in their published form.

A dataset that differs from its published size raises an error, unless the user passes `--partial`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.data.imagenet import (
    IMAGENET_C,
    IMAGENET_TRAIN,
    OBJECTNET,
    OF_VALIDATION,
    SIZES,
    SUBSETS,
    wnids,
    wnids_by_name,
)
from engine.data.kinds.base import Kind
from engine.did_you_mean import nearest
from engine.recipe.schema import DatasetRecipe
from loaders import shards, trees
from loaders.benchmarks import imagenet, imagenet_c, objectnet
from loaders.pack import Pack
from loaders.trees import Listing

FULL = "full"


class ImageNet(Kind):
    """Each dataset is at `<dataset.root>/<set>`, or at the path of `rib encode --source`."""

    def listing(self, name: str, cache: Path) -> Listing:
        if not self.dataset.root or self.is_streamed(name):
            raise ValueError(
                f"{name} is not encoded for this model's transform: run "
                f"`rib encode {name} --source FOLDER --model MODEL` with the same runs= and "
                "dataset.*"
            )
        return self.read(name, Path(self.dataset.root) / name)

    def read(self, name: str, source: Path, *, partial: bool = False) -> Listing:
        """The dataset `name` at `source`, a folder or a .tar.

        Raises ValueError for an unknown dataset, another dataset's layout, and differences from the
        published dataset; with `partial`, these differences become its `faults`.
        """
        _check_name(name)
        by_folder = imagenet.by_folder
        drawn = images_drawn(self.dataset) if name == IMAGENET_C else None
        # Hubs also name classes by their synonyms.
        named = wnids_by_name() if shards.of(source) else {}
        if name == OBJECTNET:
            listing = objectnet.read(source, name, wnids_by_name(), self.dataset.objectnet)
            position = {wnid: i for i, wnid in enumerate(wnids())}
            from engine.data import grouping  # late: planning imports no torch

            grouping.members(listing.classes, position)  # raises for classes that share an output
        elif name == IMAGENET_C:
            listing = imagenet_c.read(source, name, wnids(), drawn, self.dataset.seed)
        elif name == "imagenet_v2":
            listing = by_folder(source, name, wnids(), map(str, range(len(wnids()))), named)
        elif name == "imagenet_val":
            listing = imagenet.validation(source, name, wnids(), named)
        elif name == IMAGENET_TRAIN:
            listing = by_folder(imagenet.below(source, "train"), name, wnids(), names=named)
        else:
            listing = by_folder(source, name, wnids(SUBSETS.get(name, "")), names=named)
        # A sample of IN-C may lack classes.
        counts = [] if drawn else imagenet.faults(listing.items, listing.classes, *SIZES[name][:2])
        faults = [*listing.faults, *counts]
        if faults and not partial:
            raise ValueError(
                f"{source} is not the published {name}: {'; '.join(faults)}. Complete it, or "
                "pass --partial to `rib encode` to use it as it is"
            )
        return dataclasses.replace(listing, faults=tuple(faults))

    def counts(self, name: str) -> tuple[int, int]:
        drawn = images_drawn(self.dataset) if name == IMAGENET_C else None
        return drawn or SIZES[name].images, SIZES[name].classes

    def photos(self, name: str) -> frozenset[str]:
        return frozenset(["imagenet_val" if name in OF_VALIDATION else name])

    def open_image(self, name: str) -> Callable[[Any], Any]:
        return objectnet.open_image if name == OBJECTNET else trees.open_image

    def identity(self, name: str) -> dict[str, Any]:
        """Excludes the path of the images."""
        _check_name(name)
        key: dict[str, Any] = {key: getattr(self.dataset, key) for key in ("kind", "pack_format")}
        if name == OBJECTNET:
            key["objectnet"] = self.dataset.objectnet
            if self.dataset.objectnet == "paper":
                key["Wheel"] = "paddle wheel"
        if name == IMAGENET_C:
            key["subsample"] = self.dataset.subsample
            if images_drawn(self.dataset):
                key["seed"] = self.dataset.seed
        return key

    def shortfall(self, name: str, pack: Pack) -> str:
        expected, _ = self.counts(name)
        expected = min(expected, self.dataset.limit or expected)
        faults = list(pack.manifest["extra"].get("faults", ()))
        if not faults and len(pack) != expected:
            faults.append(f"{len(pack):,} images, not {expected:,}")
        return "; ".join(faults)

    def published_images(self, name: str) -> int | None:
        _check_name(name)
        return SIZES[name].images

    def needs_command(self, name: str) -> bool:
        root = self.dataset.root
        return self.is_streamed(name) or not (root and (Path(root) / name).exists())

    def is_streamed(self, name: str) -> bool:
        """All of IN-C has 564 GB of pixels; only `rib encode` encodes it."""
        return name == IMAGENET_C and self.dataset.subsample == FULL

    def has_parts(self, name: str) -> bool:
        return name == IMAGENET_C

    def head_classes(self) -> tuple[str, ...]:
        return wnids()


def images_drawn(dataset: DatasetRecipe) -> int | None:
    """`dataset.subsample` as a number, or None for `full`. Raises ValueError otherwise."""
    if dataset.subsample == FULL:
        return None
    if not dataset.subsample.isdecimal() or not int(dataset.subsample):
        raise ValueError(
            f"dataset.subsample={dataset.subsample!r}: give a number of images, or {FULL}"
        )
    return int(dataset.subsample)


def _check_name(name: str) -> None:
    if name not in SIZES:
        raise ValueError(f"ImageNet-RIB has no dataset {name!r}{nearest(name, SIZES)}")
