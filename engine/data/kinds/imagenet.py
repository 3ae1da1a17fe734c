"""The datasets of ImageNet-RIB in their published form.

A dataset that differs from its published size raises an error, unless the user passes `--partial`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.data.imagenet import wnids, wnids_by_name
from engine.data.kinds import base
from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.recipe.schema import DatasetRecipe
from loaders import shards, trees
from loaders.benchmarks import imagenet, imagenet_c, objectnet
from loaders.pack import Pack
from loaders.trees import Listing

OBJECTNET, IMAGENET_C, IMAGENET_TRAIN = "objectnet", "imagenet_c", "imagenet_train"
OF_VALIDATION = ("imagenet_val", "imagenet_cartoon", "imagenet_drawing", IMAGENET_C)  # its photos
SUBSETS = {"imagenet_a": "a", "imagenet_r": "r"}  # of IN-1K's classes, as timm names their lists
# Published numbers of images in total and per class (0 if classes differ), and of classes.
SIZES = {
    IMAGENET_TRAIN: (1_281_167, 0, 1000),
    "imagenet_val": (50_000, 50, 1000),
    "imagenet_v2": (10_000, 10, 1000),
    "imagenet_a": (7_500, 0, 200),
    "imagenet_r": (30_000, 0, 200),
    "imagenet_sketch": (50_889, 0, 1000),
    OBJECTNET: (18_574, 0, 113),
    "imagenet_cartoon": (50_000, 50, 1000),
    "imagenet_drawing": (50_000, 50, 1000),
    IMAGENET_C: (3_750_000, 75 * 50, 1000),
}
FULL = "full"


@dataclass(frozen=True)
class Recipe(DatasetRecipe):
    """ObjectNet's classes, and the size of IN-C."""

    # ImageNet classes of ObjectNet's objects: as its authors map them, or as in the release
    objectnet: Literal["corrected", "released"] = "corrected"
    subsample: str = "50000"  # images of IN-C, or full

    def check(self, name: str) -> None:
        if name not in SIZES:
            raise RecipeError(f"ImageNet-RIB has no dataset {name!r}{nearest(name, SIZES)}")
        is_number = self.subsample.isdecimal() and int(self.subsample)
        if not (is_number or self.subsample == FULL):
            raise RecipeError(
                f"dataset.subsample={self.subsample!r}: give a number of images, or {FULL}"
            )


LICENCE = (
    "ObjectNet may be used for research and in products with attribution (its licence follows "
    "CC BY 4.0), with two conditions of its own: no model's parameters may be tuned on it, and a "
    "single image may be published only with its red frame. It is a test set: evaluating on it is "
    "within these terms; fine-tuning on it, as ImageNet-RIB does, is not, unless its authors "
    "agreed, and needs dataset.test_only=[]. See objectnet.dev."
)


class Kind(base.Kind):
    """A dataset at `<dataset.root>/<set>`, or at the path of `rib encode --images`."""

    dataset: Recipe

    def listing(self, cache: Path, source: Path | None = None, *, partial: bool = False) -> Listing:
        name, root = self.name, self.dataset.root
        if source is None and (not root or self.is_streamed()):
            raise ValueError(
                f"{name} is not encoded for this model's transform: run "
                f"`rib encode {name} --images FOLDER --model MODEL` with the same runs= and "
                "dataset.*"
            )
        source = source or Path(root) / name
        by_folder, drawn = imagenet.by_folder, self._drawn
        # Hubs also name classes by their synonyms.
        named = wnids_by_name() if shards.find_shards(source) else {}
        if name == OBJECTNET:
            listing = objectnet.list_objectnet(
                source, name, wnids_by_name(), self.dataset.objectnet
            )
            position = {wnid: i for i, wnid in enumerate(wnids())}
            from engine.data import masks  # late: planning imports no torch

            outputs = {label: masks.names(label, position) for label in listing.classes}
            masks.members(outputs, position)  # raises for classes that share an output
        elif name == IMAGENET_C:
            listing = imagenet_c.list_imagenet_c(source, name, wnids(), drawn, self.dataset.seed)
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

    def counts(self) -> tuple[int, int]:
        images, _, classes = SIZES[self.name]
        return self._drawn or images, classes

    def photos(self) -> frozenset[str]:
        return frozenset(["imagenet_val" if self.name in OF_VALIDATION else self.name])

    def open_image(self) -> Callable[[Any], Any]:
        return objectnet.open_image if self.name == OBJECTNET else trees.open_image

    def identity(self) -> dict[str, Any]:
        """Excludes the path of the images."""
        key: dict[str, Any] = {key: getattr(self.dataset, key) for key in ("kind", "pack_format")}
        if self.name == OBJECTNET:
            key["objectnet"] = self.dataset.objectnet
            if self.dataset.objectnet == "released":
                key["Wheel"] = "paddle wheel"
        if self.name == IMAGENET_C:
            key["subsample"] = self.dataset.subsample
            if self._drawn:
                key["seed"] = self.dataset.seed
        return key

    def shortfall(self, pack: Pack) -> str:
        return "; ".join(pack.manifest["extra"].get("faults", ())) or super().shortfall(pack)

    def published_images(self) -> int | None:
        return SIZES[self.name][0]

    def expected_images(self) -> int:
        return self.counts()[0]

    def why_not_comparable(self) -> str:
        is_corrected = self.name == OBJECTNET and self.dataset.objectnet != "released"
        return "published for dataset.objectnet=released" if is_corrected else ""

    def needs_command(self) -> bool:
        root = self.dataset.root
        return self.is_streamed() or not (root and (Path(root) / self.name).exists())

    def is_streamed(self) -> bool:
        """All of IN-C has 564 GB of pixels; only `rib encode` encodes it."""
        return self.name == IMAGENET_C and not self._drawn

    def terms(self) -> str:
        return LICENCE * (self.name == OBJECTNET)

    def head_classes(self) -> tuple[str, ...]:
        return wnids()

    @property
    def _drawn(self) -> int | None:
        """The number of images of a sample, or None for the whole dataset."""
        is_drawn = self.name == IMAGENET_C and self.dataset.subsample != FULL
        return int(self.dataset.subsample) if is_drawn else None
