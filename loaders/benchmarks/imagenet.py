"""ImageNet-1K and the sets made after it, from the layout that each one's own archive unpacks to.

Whatever the layout, an item is named `<wnid>/<file>` and items are ordered by name, so a set gives
the same pack from folders, from a flat folder and from its archive. Class lists come from the
caller: `classes` are always those of the whole set, also where a tree holds a part of it.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from loaders import trees
from loaders.files import read_small
from loaders.pack import Item
from loaders.trees import File, Listing, first_names

LABEL_FILES = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")
_VAL = re.compile(r"ILSVRC2012_val_\d{8}")
_WNID = re.compile(r"n\d{8}")
_LABEL_BYTES = 1 << 26  # 64 MiB: of 50,000 images with their boxes, several times over
_LEVELS_UP = 4  # from Kaggle's val/ to its labels file


def by_wnid(root: Path, name: str, classes: Sequence[str], place: str = "") -> Listing:
    """A set laid out as `<wnid>/<image>`, with any folders above.

    `place`: the folder below `root` to read where there are several (`train`, `val`). Raises
    ValueError naming folders that are no class of the set, two sets in one root, and files of the
    same name in a class.
    """
    number = {wnid: label for label, wnid in enumerate(classes)}
    return _read(below(root, place), name, classes, _by_folder(number))


def by_integer(root: Path, name: str, classes: Sequence[str]) -> Listing:
    """A set laid out as `<class number>/<image>` (ImageNetV2); the folder `10` is class 10."""
    number = {str(label): label for label in range(len(classes))}
    return _read(root, name, classes, _by_folder(number))


def validation(root: Path, name: str, classes: Sequence[str]) -> Listing:
    """IN-1K's validation set: `<wnid>/<image>`, or flat with one of `LABEL_FILES` near it.

    The flat layout is that of the official archive and of Kaggle. Raises ValueError as `by_wnid`,
    and where labels are absent or do not name every image.
    """
    root = below(root, "val")
    first = next((file for file in trees.files(root) if file.is_image), None)
    if first is None or not _flat(first):
        return by_wnid(root, name, classes)
    wnid_of = _labels(root)
    number = {wnid: label for label, wnid in enumerate(classes)}

    def place_of(file: File) -> tuple[str, int]:
        stem = Path(file.path).stem
        if stem not in wnid_of or wnid_of[stem] not in number:
            raise ValueError(f"{root}: {file.path} has no label of IN-1K in its labels file")
        return "/".join(file.parts[:-1]), number[wnid_of[stem]]

    return _read(root, name, classes, place_of)


def below(root: Path, place: str) -> Path:
    """The folder `place` in `root`, or where Kaggle's archive has it; `root` if there is none."""
    for path in (root / place, root / "ILSVRC" / "Data" / "CLS-LOC" / place):
        if place and path.is_dir():
            return path
    return root


def source_of(name: str, key: str) -> str:
    """The source image's name; all copies of a validation image (IN-C, drawings) share it."""
    validation_image = _VAL.search(key.rpartition("/")[2])
    return validation_image[0] if validation_image else f"{name}/{key.rpartition('.')[0]}"


def faults(
    items: Sequence[Item], classes: Sequence[str], images: int, per_class: int = 0
) -> list[str]:
    """How a set differs from what was published, a sentence each; empty where it does not.

    `images`: published number. `per_class`: the number in each class, 0 where classes differ.
    """
    counts = np.bincount([item.label for item in items], minlength=len(classes))
    differences = [f"{len(items):,} images, not {images:,}"] if len(items) != images else []
    wrong = np.flatnonzero(counts != per_class if per_class else counts == 0)
    if wrong.size:
        names = [f"{classes[i]} ({counts[i]})" for i in wrong.tolist()]
        expected = f"not {per_class} images" if per_class else "no image"
        differences.append(
            f"{wrong.size} of {len(classes)} classes have {expected}: {first_names(names)}"
        )
    return differences


def copies(items: Iterable[Item]) -> list[str]:
    """Pairs of images in the same class that hold the same bytes under two names."""
    by_size: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        place = item.payload
        size = place.size if place.size >= 0 else os.stat(place.path).st_size
        by_size.setdefault((item.label, size), []).append(item)
    pairs = []
    for candidates in by_size.values():
        by_content: dict[bytes, Item] = {}
        for item in candidates if len(candidates) > 1 else ():
            first_item = by_content.setdefault(trees.read(item.payload), item)
            if first_item is not item:
                pairs.append(f"{first_item.key} and {item.key}")
    return pairs


class _NoClass(Exception):
    """The name of a folder that is no class of the set."""


def _by_folder(number: Mapping[str, int]) -> Callable[[File], tuple[str, int]]:
    """An image's label from the name of its folder."""

    def place_of(file: File) -> tuple[str, int]:
        folder = file.parts[-2] if len(file.parts) > 1 else ""
        if folder not in number:
            raise _NoClass(folder)
        return "/".join(file.parts[:-2]), number[folder]

    return place_of


def _read(
    root: Path, name: str, classes: Sequence[str], place_of: Callable[[File], tuple[str, int]]
) -> Listing:
    """Items of all images below `root`; `place_of` gives the folder above a class and the label."""
    images: list[File] = []
    left_out: list[str] = []
    for file in trees.files(root):
        images.append(file) if file.is_image else left_out.append(file.path)
    if not images:
        raise ValueError(f"{root} holds no images; give the folder or .tar of {name}")
    items: list[Item] = []
    strange: dict[str, str] = {}
    above: dict[str, str] = {}
    for file in images:
        try:
            folder, label = place_of(file)
        except _NoClass as error:
            strange.setdefault(str(error), file.path)
            continue
        above.setdefault(folder, file.path)
        key = f"{classes[label]}/{file.parts[-1]}"
        items.append(Item(label, source_of(name, key), key, file.place))
    if strange:
        raise ValueError(_strange(root, name, strange, classes))
    if len(above) > 1:
        raise ValueError(
            f"{root} holds more than one set: {first_names(list(above.values()))}; give the folder "
            f"of {name} alone"
        )
    items, twins = in_order(items)
    return Listing(items, classes, trees.fingerprint(images), tuple(left_out), twins)


def in_order(items: Iterable[Item]) -> tuple[list[Item], tuple[str, ...]]:
    """Items ordered by key, and the fault that files have equal names but for the suffix.

    Raises ValueError naming two files of the same name, and two of the same validation image.
    """
    ordered = sorted(items, key=lambda item: item.key)
    seen: dict[str, Item] = {}
    twins: list[str] = []
    for item in ordered:
        place, _, file = item.key.rpartition("/")
        stem = file.rpartition(".")[0]
        part = place.rpartition("/")[0]
        # A validation image belongs to one class; names of other images are unique in a class.
        is_validation = _VAL.fullmatch(stem) is not None
        unique = f"{part}/{stem}" if is_validation else f"{place}/{stem}"
        earlier = seen.get(unique)
        if earlier is not None and (is_validation or earlier.key == item.key):
            raise ValueError(
                f"{_shown(earlier)} and {_shown(item)} are the same image twice; remove one"
            )
        if earlier is not None:
            twins.append(f"{earlier.key} and {item.key}")
        seen[unique] = item
    if not twins:
        return ordered, ()
    return ordered, (f"{len(twins)} pairs have one name but for the suffix: {first_names(twins)}",)


def _shown(item: Item) -> str:
    return item.payload.path if item.payload.size < 0 else f"{item.key} in {item.payload.path}"


def _strange(root: Path, name: str, strange: Mapping[str, str], classes: Sequence[str]) -> str:
    folders = list(strange)
    if all(_WNID.fullmatch(folder) for folder in folders):
        hint = f"{name} has {len(classes)} classes, and these are not among them: another set?"
    elif all(folder.isdecimal() for folder in folders):
        known = name == "imagenet_v2"
        hint = (
            f"its folders are named 0 to {len(classes) - 1}"
            if known
            else "folders named by class numbers are ImageNetV2's: encode imagenet_v2"
        )
    else:
        hint = f"images of {name} lie in one folder a class; give the folder above those"
    shown = [f"{folder or '.'} ({path})" for folder, path in strange.items()]
    return f"{root}: {len(folders)} folders are no class of {name}: {first_names(shown)}. {hint}"


def _flat(file: File) -> bool:
    in_class = len(file.parts) > 1 and _WNID.fullmatch(file.parts[-2])
    return not in_class and _VAL.fullmatch(Path(file.path).stem) is not None


def _labels(root: Path) -> dict[str, str]:
    """Image name -> wnid, from the nearest labels file at or above `root`."""
    for folder in (root, *root.absolute().parents)[: _LEVELS_UP + 1]:
        for path in (folder / name for name in LABEL_FILES):
            if path.is_file():
                return _solution(path) if path.suffix == ".csv" else _synsets(path)
    raise ValueError(
        f"{root} is flat and no labels file is near it: put {' or '.join(LABEL_FILES)} into it or "
        "above it (the numbers of ILSVRC2012_validation_ground_truth.txt are not in the order of "
        "wnids and do not do), or sort the images into <wnid>/ folders"
    )


def _solution(path: Path) -> dict[str, str]:
    """Kaggle's table: an image's boxes, each beginning with the wnid."""
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        if not {"ImageId", "PredictionString"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} lacks the columns ImageId and PredictionString")
        return {row["ImageId"]: (row["PredictionString"] or "").split(" ")[0] for row in rows}
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV table ({error}); fetch it again") from error


def _synsets(path: Path) -> dict[str, str]:
    """One wnid a line, for the images in the order of their numbers."""
    wnids = _text(path).split()
    return {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(wnids, start=1)}


def _text(path: Path) -> str:
    try:
        return read_small(path, _LABEL_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}); fetch it again") from error
