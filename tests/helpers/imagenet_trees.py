"""Tiny data sets in the layouts of ImageNet-RIB's downloads: drawn images, and their reading."""

import dataclasses
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from engine.data import imagenet
from engine.data.kinds.imagenet import Kind, Recipe
from loaders.benchmarks import imagenet_c
from loaders.trees import Listing

RIB = Recipe(name="imagenet_rib", kind="imagenet", sets=[], subsample="full")
# In IN-1K, IN-A and IN-R alike, so that one head's places are asked for by every set.
WNIDS = tuple(sorted(set(imagenet.wnids("a")) & set(imagenet.wnids("r"))))[:3]
PLACES = {wnid: place for place, wnid in enumerate(imagenet.wnids())}
FOLDERS = {  # ObjectNet's folders, its names and IN's names for them
    "alarm_clock": ("Alarm clock", "analog clock; digital clock"),
    "banana": ("Banana", "banana"),
    "still_camera": ("Still Camera", "Polaroid camera, Polaroid Land camera; reflex camera"),
    "weight_scale": ("Weight scale", "scale, weighing machine"),
    "whisk": ("Whisk", ""),
}
OBJECTS = {
    "alarm_clock": ("n02708093", "n03196217"),
    "banana": ("n07753592",),
    "still_camera": ("n03976467", "n04069434"),
    "weight_scale": ("n04141975",),
}


def picture(seed: Sequence[int], size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture that is smooth, so that JPEG keeps it nearly as it is."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def draw(path: Path, seed: Sequence[int]) -> None:
    """A picture in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    picture(seed).save(path, kind, quality=95)


def by_wnid(root: Path, name: str = "{i}.jpg", copies: int = 2, number: int = 0) -> Path:
    """`<wnid>/<image>`; `name` is made from the running number of the image."""
    for label, wnid in enumerate(WNIDS):
        for copy in range(copies):
            file = name.format(i=label * copies + copy + 1)
            draw(root / wnid / file, [number, label, copy])
    return root


def validation(root: Path) -> Path:
    """`val/<wnid>/ILSVRC2012_val_0000000i.JPEG`."""
    by_wnid(root / "val", "ILSVRC2012_val_{i:08d}.JPEG")
    return root


def flat(root: Path, labels: str) -> Path:
    """The official archive's and Kaggle's layout: no classes, their labels in a file."""
    wnids = [wnid for wnid in WNIDS for _ in range(2)]
    for number, wnid in enumerate(wnids):
        name = f"ILSVRC2012_val_{number + 1:08d}"
        draw(root / "val" / f"{name}.JPEG", [0, WNIDS.index(wnid), number % 2])
    if labels.endswith(".csv"):
        rows = [f"ILSVRC2012_val_{i + 1:08d},{wnid} 1 2 3 4" for i, wnid in enumerate(wnids)]
        (root / labels).write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
    else:
        (root / labels).write_text("\n".join(wnids))
    return root


def version_2(root: Path) -> Path:
    """`imagenetv2-matched-frequency-format-val/<class number>/<hash>.jpeg`."""
    for label, wnid in enumerate(WNIDS):
        folder = root / "imagenetv2-matched-frequency-format-val" / str(PLACES[wnid])
        for copy in range(2):
            draw(folder / f"{'abc'[label]}{copy}.jpeg", [2, label, copy])
    return root


def objectnet(root: Path) -> Path:
    """`objectnet-1.0/images/<folder>/*.png` with a red frame, and `mappings/`."""
    top = root / "objectnet-1.0"
    for label, folder in enumerate(FOLDERS):
        for copy in range(2):
            path = top / "images" / folder / f"{folder}{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            framed = Image.new("RGB", (52, 44), (255, 0, 0))
            framed.paste(picture([3, label, copy]), (2, 2))
            framed.save(path)
    (top / "mappings").mkdir()
    labels = {folder: label for folder, (label, _) in FOLDERS.items()}
    names = {label: names for label, names in FOLDERS.values() if names}
    (top / "mappings" / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    (top / "mappings" / "objectnet_to_imagenet_1k.json").write_text(json.dumps(names))
    return root


def corrupted(root: Path, grouped: bool = True) -> Path:
    """`[<group>/]<corruption>/<severity>/<wnid>/<image>`: 75 folders, two classes in each."""
    number = 0
    for group, names in imagenet_c.GROUPS.items():
        for name in names:
            for severity in imagenet_c.SEVERITIES:
                for label, wnid in enumerate(WNIDS[:2]):
                    file = f"ILSVRC2012_val_{2 * label + 1:08d}.JPEG"
                    top = root / group if grouped else root
                    draw(top / name / severity / wnid / file, [4, number])
                    number += 1
    return root


def archive(folder: Path, path: Path, nested: bool = False, gzip: bool = False) -> Path:
    """The folder's content as a .tar; `nested`: an archive of one archive a class."""
    with tarfile.open(path, "w:gz" if gzip else "w") as whole:
        for child in sorted(folder.iterdir()):
            if not nested:
                whole.add(child, child.name)
                continue
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as part:
                for file in sorted(child.iterdir()):
                    part.add(file, file.name)
            entry = tarfile.TarInfo(f"{child.name}.tar")
            entry.size = inner.tell()
            inner.seek(0)
            whole.addfile(entry, inner)
    return path


def read(name: str, source: Path, **options: str) -> Listing:
    """A set of which a few images are here."""
    kind = Kind(dataclasses.replace(RIB, **options), name)
    return kind.listing(source, source, partial=True)
