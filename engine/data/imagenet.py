"""The classes of ImageNet-1K, by timm's lists and names."""

from __future__ import annotations

import functools
import pkgutil
from collections import Counter
from collections.abc import Sequence


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
    from timm.data.imagenet_info import ImageNetInfo  # late: other functions need no timm

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
