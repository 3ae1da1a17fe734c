"""The sets of ImageNet-RIB: their classes, their published sizes, and how they lie on a disk.

Class lists and class names come from timm. A set that differs from its published size is refused,
unless the user says that it is only a part.
"""

from __future__ import annotations

import dataclasses
import functools
import pkgutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import nearest
from engine.recipe.schema import DatasetRecipe
from loaders import shards
from loaders.benchmarks import imagenet, imagenet_c, objectnet
from loaders.pack import Pack
from loaders.trees import Listing

OBJECTNET, IMAGENET_C = "objectnet", "imagenet_c"
VAL_LABELS = imagenet.LABEL_FILES[1]  # of IN-1K's flat validation set: a wnid a line
OF_VALIDATION = ("imagenet_val", "imagenet_cartoon", "imagenet_drawing", "imagenet_c")  # its photos
FULL = "full"
_SUBSETS = {"imagenet_a": "a", "imagenet_r": "r"}  # of IN-1K's classes, as timm names their lists
LICENCE = (
    "ObjectNet may be used for research and in products with attribution (its licence follows "
    "CC BY 4.0), with two conditions of its own: no model's parameters may be tuned on it, and a "
    "single image may be published only with its red frame. It is a test set: evaluating on it is "
    "within these terms; fine-tuning on it, as ImageNet-RIB does, is not, unless its authors "
    "agreed, and needs dataset.objectnet_terms=accepted. See objectnet.dev."
)


class Size(NamedTuple):
    """Published numbers of images, in total and of each class (0 where classes differ), and of
    classes."""

    images: int
    per_class: int = 0
    classes: int = 1000


SIZES = {
    "imagenet_train": Size(1_281_167),
    "imagenet_val": Size(50_000, 50),
    "imagenet_v2": Size(10_000, 10),
    "imagenet_a": Size(7_500, classes=200),
    "imagenet_r": Size(30_000, classes=200),
    "imagenet_sketch": Size(50_889),
    OBJECTNET: Size(18_574, classes=113),
    "imagenet_cartoon": Size(50_000, 50),
    "imagenet_drawing": Size(50_000, 50),
    IMAGENET_C: Size(75 * imagenet_c.PER_PART, 75 * 50),
}


def read(dataset: DatasetRecipe, name: str, source: Path, *, partial: bool = False) -> Listing:
    """The set `name` as it lies at `source`, a folder or a .tar.

    Raises ValueError for an unknown set, for the layout of another set, and for differences from
    the published set; with `partial` these differences are its `faults` instead.
    """
    _check_name(name)
    # Hubs name classes by their synonyms, too.
    named = wnids_by_name() if shards.of(source) else {}
    if name == OBJECTNET:
        from engine.data import grouping

        listing = objectnet.read(source, name, wnids_by_name(), dataset.objectnet)
        position = {wnid: i for i, wnid in enumerate(wnids())}
        grouping.members(listing.classes, position)  # raises for classes that share an output
    elif name == IMAGENET_C:
        listing = imagenet_c.read(source, name, wnids(), images_drawn(dataset), dataset.seed)
    elif name == "imagenet_v2":
        listing = imagenet.by_folder(source, name, wnids(), map(str, range(len(wnids()))), named)
    elif name == "imagenet_val":
        listing = imagenet.validation(source, name, wnids(), named)
    elif name == "imagenet_train":
        listing = imagenet.by_folder(imagenet.below(source, "train"), name, wnids(), names=named)
    else:
        listing = imagenet.by_folder(source, name, wnids(_SUBSETS.get(name, "")), names=named)
    # A sample of IN-C may lack classes.
    drawn = name == IMAGENET_C and images_drawn(dataset) is not None
    counts = [] if drawn else imagenet.faults(listing.items, listing.classes, *SIZES[name][:2])
    faults = [*listing.faults, *counts]
    if faults and not partial:
        raise ValueError(
            f"{source} is not the published {name}: {'; '.join(faults)}. Complete it, or give "
            "--partial to `rib encode` if a part is what you want"
        )
    return dataclasses.replace(listing, faults=tuple(faults))


def identity(dataset: DatasetRecipe, name: str) -> dict[str, Any]:
    """What of the recipe determines a set's pack, without the place of its images.

    Raises ValueError for an unknown set.
    """
    _check_name(name)
    key: dict[str, Any] = {"kind": dataset.kind, "pack_format": dataset.pack_format}
    if name == OBJECTNET:
        key["objectnet"] = dataset.objectnet
    if name == IMAGENET_C:
        key["subsample"] = dataset.subsample
        if images_drawn(dataset):
            key["seed"] = dataset.seed
    return key


def images(dataset: DatasetRecipe, name: str) -> int:
    """How many images the pack of the published set holds."""
    drawn = images_drawn(dataset) if name == IMAGENET_C else None
    return drawn or SIZES[name].images


def shortfall(dataset: DatasetRecipe, name: str, pack: Pack) -> str:
    """What a pack lacks of the published set, in words; empty where it lacks nothing."""
    expected = images(dataset, name)
    faults = list(pack.manifest["extra"].get("faults", ()))
    if not faults and len(pack) != expected:
        faults.append(f"{len(pack):,} images, not {expected:,}")
    return "; ".join(faults)


def is_whole_c(dataset: DatasetRecipe, name: str) -> bool:
    """Whether a set is all of IN-C: 564 GB of pixels, encoded by `rib encode` only and streamed."""
    return dataset.kind == "imagenet" and name == IMAGENET_C and dataset.subsample == FULL


def images_drawn(dataset: DatasetRecipe) -> int | None:
    """`dataset.subsample` as a number; None for `full`, ValueError for anything else."""
    if dataset.subsample == FULL:
        return None
    if not dataset.subsample.isdecimal() or not int(dataset.subsample):
        raise ValueError(f"dataset.subsample={dataset.subsample!r}: a number of images, or {FULL}")
    return int(dataset.subsample)


def _check_name(name: str) -> None:
    if name not in SIZES:
        raise ValueError(f"{name!r} is no set of ImageNet-RIB{nearest(name, SIZES)}")


@functools.cache
def wnids(subset: str = "") -> tuple[str, ...]:
    """The classes of ImageNet-1K, or of its subset `a` or `r`, in the order of every IN-1K head."""
    file = f"_info/imagenet_{subset}_synsets.txt" if subset else "_info/imagenet_synsets.txt"
    data = pkgutil.get_data("timm.data", file)
    assert data is not None, file
    return tuple(data.decode().split())


@functools.cache
def synonyms() -> dict[str, str]:
    """By wnid the names of a class, such as `white shark, man-eater`."""
    from timm.data.imagenet_info import ImageNetInfo  # late: other questions do without timm

    info = ImageNetInfo("imagenet-1k")
    return {wnid: info.label_name_to_description(wnid) for wnid in wnids()}


def wnids_by_name() -> dict[str, str]:
    """Class names, with all their synonyms, to wnids; a name that two classes have is left out."""
    counts = Counter(synonyms().values())
    return {name: wnid for wnid, name in synonyms().items() if counts[name] == 1}


def readable(classes: Sequence[str]) -> list[str]:
    """Class names for people: of ImageNet-1K's wnids the first synonym, with the wnid where it is
    not enough; any other as it is."""
    if tuple(classes) != wnids():
        return list(classes)
    names = {wnid: words.split(", ")[0] for wnid, words in synonyms().items()}
    counts = Counter(names.values())
    return [f"{name} ({wnid})" if counts[name] > 1 else name for wnid, name in names.items()]
