"""The datasets of ImageNet-RIB: classes and published sizes.

Class lists and class names come from timm.
"""

from __future__ import annotations

import functools
import pkgutil
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from loaders.benchmarks import imagenet, imagenet_c

OBJECTNET, IMAGENET_C, IMAGENET_TRAIN = "objectnet", "imagenet_c", "imagenet_train"
VAL_LABELS = imagenet.LABEL_FILES[1]  # of IN-1K's flat validation set: one wnid per line
OF_VALIDATION = ("imagenet_val", "imagenet_cartoon", "imagenet_drawing", "imagenet_c")  # its photos
SUBSETS = {"imagenet_a": "a", "imagenet_r": "r"}  # of IN-1K's classes, as timm names their lists
LICENCE = (
    "ObjectNet may be used for research and in products with attribution (its licence follows "
    "CC BY 4.0), with two conditions of its own: no model's parameters may be tuned on it, and a "
    "single image may be published only with its red frame. It is a test set: evaluating on it is "
    "within these terms; fine-tuning on it, as ImageNet-RIB does, is not, unless its authors "
    "agreed, and needs dataset.objectnet_terms=accepted. See objectnet.dev."
)


class Size(NamedTuple):
    """Published numbers of images in total and per class (0 if classes differ), and of classes."""

    images: int
    per_class: int = 0
    classes: int = 1000


SIZES = {
    IMAGENET_TRAIN: Size(1_281_167),
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
    from timm.data.imagenet_info import (
        ImageNetInfo,
    )  # imported here, because other functions need no timm

    info = ImageNetInfo("imagenet-1k")
    return {wnid: info.label_name_to_description(wnid) for wnid in wnids()}


def wnids_by_name() -> dict[str, str]:
    """Maps class names, with all synonyms, to wnids; ambiguous names are left out."""
    counts = Counter(synonyms().values())
    return {name: wnid for wnid, name in synonyms().items() if counts[name] == 1}


def readable(classes: Sequence[str]) -> list[str]:
    """Readable class names: for ImageNet-1K's wnids the first synonym, with the wnid if it is
    ambiguous; others unchanged."""
    if tuple(classes) != wnids():
        return list(classes)
    names = {wnid: words.split(", ")[0] for wnid, words in synonyms().items()}
    counts = Counter(names.values())
    return [f"{name} ({wnid})" if counts[name] > 1 else name for wnid, name in names.items()]
