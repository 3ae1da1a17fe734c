"""ImageNet-C: fifteen corruptions of the validation set at five severities, complete or subsampled.

The complete dataset has 3.75 million images, 75 times as many as any other dataset of the
benchmark. For fine-tuning and cheap evaluation, subsamples balance corruptions, severities and
classes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from loaders import trees
from loaders.benchmarks.imagenet import in_order, source_of
from loaders.pack import Item
from loaders.sampling import balanced
from loaders.trees import Listing, first_names

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in GROUPS.values() for name in names)
SEVERITIES = ("1", "2", "3", "4", "5")
PARTS = tuple(f"{name}/{severity}" for name, severity in product(CORRUPTIONS, SEVERITIES))
PER_PART = 50_000  # images
COLUMNS = ("corruption", "severity")


def list_imagenet_c(
    root: Path, name: str, classes: Sequence[str], subsample: int | None = None, seed: int = 0
) -> Listing:
    """Lists `<corruption>/<severity>/<wnid>/<image>`, with or without a group folder above, or in
    .tar.

    subsample: number of images, chosen by `balanced`; None for all. Skips other corruptions (the
    release has four more). Raises ValueError naming folders of an unknown severity or class, and
    for a subsample that is not positive or larger than the dataset.
    """
    number = {wnid: label for label, wnid in enumerate(classes)}
    hashed = hashlib.sha256()  # file by file: a list of millions would take gigabytes
    left_out: list[str] = []
    items: list[Item] = []
    for file in trees.files(root):
        parts = file.parts
        if not file.is_image or len(parts) < 4 or parts[-4] not in CORRUPTIONS:
            left_out.append(file.path)
            continue
        severity, wnid = parts[-3], parts[-2]
        if severity not in SEVERITIES or wnid not in number:
            raise ValueError(
                f"{root}: {file.path} is not <corruption>/<1 to 5>/<wnid>/<image> of IN-C"
            )
        hashed.update(trees.stamped(file))
        key = "/".join(parts[-4:])
        part = parts[-4], severity
        items.append(Item(number[wnid], source_of(name, key), key, file.place, part))
    if not items:
        raise ValueError(
            f"{root} has no images <corruption>/<severity>/<wnid>/<image>; give the folder with "
            f"{', '.join(f'{group}/' for group in GROUPS)}, or with their .tar files"
        )
    counts = Counter(map(part_of, items))
    items = in_order(items)
    if subsample is not None:
        if not 0 < subsample <= len(items):
            raise ValueError(
                f"subsample={subsample}: the dataset has {len(items)} images; full uses all"
            )
        parts, labels = [*map(part_of, items)], [item.label for item in items]
        items = [items[position] for position in balanced(parts, labels, subsample, seed)]
    faults = tuple(_faults(counts))
    return Listing(items, classes, hashed.hexdigest(), tuple(left_out), faults, COLUMNS)


def _faults(counts: Mapping[str, int]) -> Iterator[str]:
    if missing := [part for part in PARTS if not counts[part]]:
        yield f"{len(missing)} of {len(PARTS)} parts are missing: {' '.join(missing)}"
    wrong = [f"{part} ({counts[part]:,})" for part in PARTS if counts[part] not in (0, PER_PART)]
    if wrong:
        shown = first_names(wrong)
        yield f"{len(wrong)} of {len(PARTS)} parts have not {PER_PART:,} images: {shown}"


def part_of(item: Item) -> str:
    """Returns the part of the dataset that an item belongs to: `corruption/severity`."""
    return "/".join(item.values)
