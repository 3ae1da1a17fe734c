"""ImageNet-RIB's archives with a few images each, as they are published, and their sources."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import yaml

from engine.recipe import catalogue
from helpers import imagenet_trees as trees
from helpers.tarballs import encrypted, tarball, zipped
from helpers.web import Web
from loaders.benchmarks import imagenet_c

PASSWORD = "a set for tests only"


@dataclass(frozen=True)
class Published:
    """`files`: all archives. `of_form`: the folder of those that a user gets by a form. `sources`:
    the project's file with the addresses, sizes and checksums of these archives."""

    files: Path
    of_form: Path
    sources: Path

    def serve(self, web: Web, **faults: dict[str, Any]) -> None:
        """Put the archives on a server; faults: of files by their set, as `web.File` has them."""
        for name, source in yaml.safe_load(self.sources.read_text()).items():
            for file in source["files"]:
                content = (self.files / file["name"]).read_bytes()
                web(file["name"], content=content, **faults.get(name, {}))


def publish(folder: Path, web: Web) -> Published:
    files, of_form = folder / "files", folder / "form"
    files.mkdir(parents=True)
    of_form.mkdir()
    _archives(folder / "trees", files)
    sources = catalogue.read_recipe(catalogue.ROOT / "sources.yaml")
    for source in sources.values():
        for file in source["files"]:
            path = files / file["name"]
            for key in ("bytes", "sha256", "md5"):
                file.pop(key, None)
            file["bytes"] = path.stat().st_size
            file["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            if "addresses" in file:
                file["addresses"] = [f"{web.address}/{path.name}"]
            else:
                (of_form / path.name).hardlink_to(path)
    place = folder / "sources.yaml"
    place.write_text(yaml.safe_dump(sources, sort_keys=False))
    return Published(files, of_form, place)


def _archives(root: Path, files: Path) -> None:
    """Write all archives, each in the form in which it is published."""
    trees.flat(root / "val", "labels.txt")
    trees.archive(root / "val" / "val", files / "ILSVRC2012_img_val.tar")
    labels = (root / "val" / "labels.txt").read_text().split()
    _development_kit(files / "ILSVRC2012_devkit_t12.tar.gz", labels)
    trees.by_wnid(root / "train", "n_{i}.JPEG", number=16)
    trees.archive(root / "train", files / "ILSVRC2012_img_train.tar", nested=True)
    # Under this name, a tar without compression has been published too.
    trees.archive(trees.version_2(root / "v2"), files / "imagenetv2-matched-frequency.tar.gz")
    for number, name in ((11, "imagenet-a"), (12, "imagenet-r")):
        trees.by_wnid(root / name / name, number=number)
        trees.archive(root / name, files / f"{name}.tar")
    for number, name in ((14, "imagenet-cartoon"), (15, "imagenet-drawing")):
        trees.by_wnid(root / name / name, "ILSVRC2012_val_{i:08d}.JPEG", number=number)
        trees.archive(root / name, files / f"{name}.tar.gz", gzip=True)
    trees.by_wnid(root / "s" / "sketch", number=13)
    zipped(files / "ImageNet-Sketch.zip", _contents(root / "s"))
    objects = _contents(trees.objectnet(root / "o"))
    (files / "objectnet-1.0.zip").write_bytes(encrypted(objects, PASSWORD))
    trees.corrupted(root / "c")
    for group in imagenet_c.GROUPS:
        trees.archive(root / "c" / group, files / f"{group}.tar")


def _development_kit(path: Path, labels: Sequence[str]) -> None:
    """The wnid of each validation image; classes are numbered in another order than their wnids."""
    number = {wnid: i for i, wnid in enumerate((*reversed(trees.WNIDS), "n00001740"), start=1)}
    table = np.empty((len(number), 1), [("ILSVRC2012_ID", object), ("WNID", object)])
    table[:, 0] = [(np.uint16(place), wnid) for wnid, place in number.items()]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": table}, do_compression=True)
    numbers = "".join(f"{number[wnid]}\n" for wnid in labels).encode()
    data = "ILSVRC2012_devkit_t12/data"
    members = {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": numbers}
    tarball(path, {f"{data}/{name}": content for name, content in members.items()})


def _contents(root: Path) -> dict[str, bytes]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
