"""ImageNet-1K and its derived datasets, in the layouts of their official archives.

In any layout, items are named `<wnid>/<file>` and ordered by name, so a dataset gives the same pack
from class folders, from a flat folder and from its archive. The caller passes the class list:
`classes` are always those of the whole dataset, even if a tree holds only part of it.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from loaders import shards, trees
from loaders.files.durable import read_small
from loaders.pack import Item
from loaders.trees import File, Listing, Place, first_names

LABEL_FILES = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")
_VAL = re.compile(r"ILSVRC2012_val_\d{8}")
_WNID = re.compile(r"n\d{8}")
_LABEL_BYTES = 1 << 26  # 64 MiB: several times the labels and boxes of 50,000 images
_LEVELS_UP = 4  # from Kaggle's val/ to its labels file
_KIT = ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")


def by_folder(
    root: Path,
    name: str,
    classes: Sequence[str],
    folders: Iterable[str] = (),
    names: Mapping[str, str] = MappingProxyType({}),
) -> Listing:
    """Lists a dataset laid out as `<wnid>/<image>`, with any folders above.

    folders: the classes' folder names, if not the wnids (ImageNetV2 has numbers). names: other
    class names to wnids, as in shards of a hub.

    Raises ValueError naming folders that are not classes of the dataset, two datasets in one root,
    and files with the same name in a class.
    """
    labels = {folder: label for label, folder in enumerate(folders or classes)}
    if names:
        of_wnid = {wnid: label for label, wnid in enumerate(classes)}
        of_name = {name: of_wnid[wnid] for name, wnid in names.items() if wnid in of_wnid}
        labels = of_name | of_wnid | labels
    return _read(root, name, classes, labels)


def validation(
    root: Path, name: str, classes: Sequence[str], names: Mapping[str, str] = MappingProxyType({})
) -> Listing:
    """Lists IN-1K's validation set: `<wnid>/<image>`, or flat with one of `LABEL_FILES` near it.

    The official archive and Kaggle's have the flat layout. Raises ValueError as `by_folder` does,
    and if labels are missing or do not cover all images.
    """
    root = below(root, "val")
    first = next((file for file in shards.files(root) if file.is_image), None)
    if first is None or not _flat(first):
        return by_folder(root, name, classes, names=names)
    number = {wnid: label for label, wnid in enumerate(classes)}
    labels = {image: number[wnid] for image, wnid in _labels(root).items() if wnid in number}
    return _read(root, name, classes, labels, flat=True)


def below(root: Path, place: str) -> Path:
    """Returns the folder `place` in `root`, or in Kaggle's layout; `root` if neither exists."""
    for path in (root / place, root / "ILSVRC" / "Data" / "CLS-LOC" / place):
        if path.is_dir():
            return path
    return root


def source_of(name: str, key: str) -> str:
    """Returns the source image's name; copies of a validation image (IN-C, drawings) share it."""
    validation_image = _VAL.search(key.rpartition("/")[2])
    return validation_image[0] if validation_image else f"{name}/{key.rpartition('.')[0]}"


def faults(
    items: Sequence[Item], classes: Sequence[str], images: int, per_class: int = 0
) -> list[str]:
    """Describes how a dataset differs from what was published, one sentence each; empty if it does
    not.

    images: published number. per_class: published number per class, or 0 if classes differ.
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


def _read(
    root: Path,
    name: str,
    classes: Sequence[str],
    label_of: Mapping[str, int],
    *,
    flat: bool = False,
) -> Listing:
    """Lists all images below `root`. label_of: by an image's folder, or by its name if `flat`."""
    images: list[File] = []
    left_out: list[str] = []
    for file in shards.files(root):
        images.append(file) if file.is_image else left_out.append(file.path)
    if not images:
        raise ValueError(f"{root} has no images; give the folder or .tar of {name}")
    items: list[Item] = []
    strange: dict[str, str] = {}
    above: dict[str, str] = {}
    for file in images:
        *folders, folder = ("", *file.parts[:-1])
        if flat:
            folders, folder = [*folders, folder], Path(file.path).stem
        if folder not in label_of:
            strange.setdefault(folder, file.path)
            continue
        above.setdefault("/".join(folders), file.path)
        label = label_of[folder]
        key = f"{classes[label]}/{file.parts[-1]}"
        items.append(Item(label, source_of(name, key), key, file.place))
    if strange and flat:
        raise ValueError(f"{root}: the labels file lacks {first_names([*strange.values()])}")
    if strange:
        shown = first_names([f"{folder or '.'} ({path})" for folder, path in strange.items()])
        raise ValueError(
            f"{root}: {len(strange)} folders are not classes of {name}: {shown}. Its classes are "
            f"{first_names([*label_of])}; is it another dataset?"
        )
    if len(above) > 1:
        raise ValueError(
            f"{root} has more than one dataset: {first_names([*above.values()])}; give the folder "
            f"of {name} only"
        )
    return Listing(in_order(items), classes, trees.fingerprint(images), tuple(left_out))


def in_order(items: Iterable[Item]) -> list[Item]:
    """Returns the items ordered by key.

    Raises ValueError naming two files with the same name, or two files of one validation image.
    """
    ordered = sorted(items, key=lambda item: item.key)
    seen: dict[str, Item] = {}
    for item in ordered:
        place, _, file = item.key.rpartition("/")
        stem, part = file.rpartition(".")[0], place.rpartition("/")[0]
        # Names of validation images are unique in the dataset, other names only in their class.
        name = f"{part}/{stem}" if _VAL.fullmatch(stem) else item.key
        if (earlier := seen.setdefault(name, item)) is not item:
            raise ValueError(f"{_shown(earlier)} and {_shown(item)} are the same image; remove one")
    return ordered


def _shown(item: Item) -> str:
    is_a_file = isinstance(item.payload, Place) and item.payload.size < 0
    return item.payload.path if is_a_file else f"{item.key} in {item.payload.path}"


def _flat(file: File) -> bool:
    in_class = len(file.parts) > 1 and _WNID.fullmatch(file.parts[-2])
    return not in_class and _VAL.fullmatch(Path(file.path).stem) is not None


def _labels(root: Path) -> dict[str, str]:
    """Image name -> wnid, from the nearest labels file in `root` or above."""
    for folder in (root, *root.absolute().parents)[: _LEVELS_UP + 1]:
        for path in (folder / name for name in LABEL_FILES):
            if path.is_file():
                text = read_small(path, _LABEL_BYTES)
                try:
                    read = _solution if path.suffix == ".csv" else _synsets
                    return read(text.decode("utf-8-sig"))
                except (UnicodeDecodeError, csv.Error, KeyError) as error:
                    raise ValueError(f"{path} is damaged ({error!r}); download it again") from error
    raise ValueError(
        f"{root} is flat and has no labels file: put {' or '.join(LABEL_FILES)} into it or above "
        "it, or sort the images into <wnid>/ folders (ILSVRC2012_validation_ground_truth.txt does "
        "not work: its numbers are not in the order of wnids)"
    )


def _solution(text: str) -> dict[str, str]:
    """Kaggle's table: each image's boxes start with the wnid."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return {row["ImageId"]: (row["PredictionString"] or "").split(" ")[0] for row in rows}


def _synsets(text: str) -> dict[str, str]:
    """One wnid per line, for the images in the order of their numbers."""
    return {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(text.split(), start=1)}


def wnids_of_kit(archive: Path) -> list[str]:
    """Returns the wnid of each validation image, in order, from the development kit's .tar.gz.

    The kit numbers classes in its own order: `meta.mat` gives the wnid of each number, and a text
    file the number of each image. Raises ValueError for an archive that is damaged or not the kit.
    """
    import scipy.io  # imported here: only a download needs it

    damage = (tarfile.TarError, EOFError, OSError, scipy.io.matlab.MatReadError)
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as kit:
            for member in kit:
                name = member.name.rpartition("/")[2]
                if name in _KIT and member.isfile():  # extractfile would follow a link
                    content = kit.extractfile(member)
                    assert content is not None, member.name
                    members[name] = content.read()
        meta, numbers = (members[name] for name in _KIT)
        table = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table.ravel()}
        return [wnid_of[int(number)] for number in numbers.split()]
    except (*damage, KeyError, ValueError) as error:
        raise ValueError(
            f"{archive} is not ImageNet's development kit of 2012 ({error!r}); download "
            "ILSVRC2012_devkit_t12.tar.gz again"
        ) from error
