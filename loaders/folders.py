"""The common layouts of image datasets: one folder of image files per class, or a hub's shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from loaders import shards, trees
from loaders.pack import Item
from loaders.trees import Listing, first_names


def list_folders(root: Path, columns: Sequence[str] = ()) -> Listing:
    """Lists the images `root/<class>/<image>`, ordered by class and name; skips hidden folders.

    columns: names of the folders above the classes', as in
    `<corruption>/<severity>/<class>/<image>`. `root` may also be shards (`loaders.shards`). An
    image's source is its class and file name.

    Raises ValueError naming a root that is missing, empty or has files instead of classes, classes
    without images (with columns, folders without files), and invalid files (see `trees.files`).
    """
    if found := shards.find_shards(root):
        return shards.listing(root, found)
    if not root.is_dir():
        raise ValueError(f"{root.absolute()} is not a folder; it needs one folder per class")
    images: list[trees.File] = []
    left_out: list[str] = []
    for file in trees.files_below(str(root)):
        is_of_a_class = file.path.count("/") == 1 + len(columns) and "/." not in f"/{file.path}"
        images.append(file) if file.is_image and is_of_a_class else left_out.append(file.path)
    if not images:
        layout = "/".join(f"<{name}>" for name in (*columns, "class", "image"))
        raise ValueError(
            f"{root} has no images {layout} ({', '.join(trees.IMAGE_SUFFIXES)}); "
            "is it the right folder?"
        )
    parts = [file.path.split("/") for file in images]
    classes = sorted({folder for *_, folder, _ in parts})
    names = [path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    empty = set(names) - {first for first, *_ in parts}
    if columns:  # other folders may lie beside them
        empty -= {path.partition("/")[0] for path in left_out}
    if empty:
        what = "folders" if columns else "classes"
        raise ValueError(f"{root} has {what} without images: {first_names(sorted(empty))}")
    label = {name: number for number, name in enumerate(classes)}
    items = [
        Item(
            label[folder],
            f"{folder}/{name}".rpartition(".")[0],
            file.path,
            file.place,
            tuple(above),
        )
        for file, (*above, folder, name) in zip(images, parts, strict=True)
    ]
    stamps = "\n".join(f"{file.path} {file.stamp}" for file in images)
    fingerprint = hashlib.sha256(stamps.encode()).hexdigest()
    return Listing(items, classes, fingerprint, tuple(left_out), columns=tuple(columns))
