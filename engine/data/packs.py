"""Find the packs of a benchmark's datasets, or encode them from images on disk or packages."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.data.kinds import Kind, kind_of
from engine.recipe import image_transform
from engine.recipe.finder import is_users
from engine.recipe.schema import Recipe
from loaders import decoding
from loaders.beton import page_size_of
from loaders.files.durable import short_digest
from loaders.files.root import Root
from loaders.pack import MANIFEST, Pack
from loaders.trees import Listing, left_out

log = logging.getLogger(__name__)
PACK_FORMAT = 1
PARALLEL_FROM = 5000  # images
JPEG_SHARE = 0.3  # of the raw size; photos at quality 90 take less
SAMPLE = 500  # maximum bytes of an image's label, names and checksum
IMAGES_A_CLASS = 6  # of a smoke run; enough to hold out at least one of each class


def pack_of(recipe: Recipe, name: str, cache: Path, *, head: Sequence[str] = ()) -> Pack:
    """The pack of a dataset for a recipe's model; encodes it if there is none.

    head: the classes of the model's head, if they are known. Raises ValueError if the pack was made
    with other options or the images have changed, and PermissionError if it is missing and only a
    user's file, which may not run, can read the images.
    """
    kind = kind_of(recipe.dataset, name)
    kind.head = head
    if pack := _open_pack(recipe, kind):
        if "adopted" not in pack.manifest["extra"]:
            now = kind.fingerprint()
            if now is not None and now != pack.manifest["source_fingerprint"]:
                raise ValueError(
                    f"the images in {Path(kind.dataset.root) / name} changed since {pack.folder} "
                    "was encoded: undo the change, or delete that folder and run the same command "
                    "to encode them again"
                )
    else:
        skip = kind.dataset.undecodable == "skip"
        pack = make_pack(recipe, kind, kind.listing(cache), skip=skip)
        for remark, names in pack.manifest.get("remarks", {}).items():
            log.warning("%s: %s: %s", name, remark, names)
    if skipped := pack.manifest["skipped"]:
        log.warning("%s lacks %s", name, left_out(skipped, len(pack) + len(skipped)))
    if lacks := kind.shortfall(pack):
        log.warning("%s is incomplete: %s", name, lacks)
    return pack


def to_train_on(recipe: Recipe) -> Recipe:
    """The recipe whose packs training reads: larger images if it crops them."""
    if not recipe.train.crops:
        return recipe
    return dataclasses.replace(recipe, model=image_transform.crop_from(recipe.model))


def is_encoded(recipe: Recipe, name: str) -> bool:
    """Whether there is a pack of a dataset; a smoke run can also use the whole dataset's pack."""
    folders = (pack_folder(variant, name) for variant in (recipe, _of_whole_sets(recipe)))
    return any(_has_pack(recipe, folder) for folder in folders)


def _has_pack(recipe: Recipe, folder: Path) -> bool:
    return Root(Path(recipe.runs)).has(folder / MANIFEST)


def _of_whole_sets(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, dataset=dataclasses.replace(recipe.dataset, limit=0))


def _open_pack(recipe: Recipe, kind: Kind) -> Pack | None:
    """The pack of a dataset, or None. A smoke run's is copied from the whole dataset's."""
    wanted = identity(recipe, kind)
    folder = _folder(recipe, wanted)
    if _has_pack(recipe, folder):
        pack = Pack.open(folder)
        _check_identity(pack, wanted)
        return pack
    if not (limit := recipe.dataset.limit):
        return None
    of_whole = _of_whole_sets(recipe)
    if not (whole := _open_pack(of_whole, kind_of(of_whole.dataset, kind.name))):
        return None
    from loaders.copies import part  # late: most jobs only find packs

    classes = [whole.classes[label] for label in whole.labels.tolist()]
    positions = chosen(classes, whole.keys.tolist(), limit)
    return part(whole, positions, folder, extra=whole.manifest["extra"] | {"identity": wanted})


def make_pack(
    recipe: Recipe, kind: Kind, listing: Listing, *, workers: int = 0, skip: bool = False
) -> Pack:
    """Encode a dataset as the pack that `pack_of` opens.

    workers: processes; 0: a single process, or all cores for a large dataset. skip: leave out
    images that cannot be decoded, and list them in the manifest. With `dataset.limit`, the pack has
    that number of the listing's images.
    """
    from loaders.encode import Images, encode  # late: most jobs only find packs

    transform = image_transform.transform(recipe.model)
    name, dataset, items = kind.name, kind.dataset, listing.items
    if dataset.limit:
        classes = [listing.classes[item.label] for item in items]
        keys = [item.key for item in items]
        items = [items[position] for position in chosen(classes, keys, dataset.limit)]
    # Each worker first imports torch and timm, which pays off only for a large dataset. It cannot
    # import a user's file.
    is_large = len(items) > PARALLEL_FROM and not is_users(dataset.kind)
    parallel = len(os.sched_getaffinity(0)) if is_large else 1
    extra: dict[str, Any] = {"identity": identity(recipe, kind)}
    if listing.faults:
        extra["faults"] = list(listing.faults)
    if decoding.colour(dataset.background) != decoding.colour(decoding.WHITE):
        extra["background"] = dataset.background
    pack_format: Any = dataset.pack_format  # checked with the recipe
    return encode(
        _folder(recipe, extra["identity"]),
        name=name,
        items=items,
        encoder=Images(kind.open_image(), transform, pack_format, dataset.background),
        transform_spec=transform.spec,
        classes=listing.classes,
        source_fingerprint=listing.fingerprint,
        columns=listing.columns,
        extra=extra,
        workers=workers or parallel,
        on_error="skip" if skip else "refuse",
    )


def chosen(classes: Sequence[str], keys: Sequence[str], limit: int) -> list[int]:
    """Positions (ascending) of at most `limit` images for a smoke run (`dataset.limit`).

    classes, keys: of each image. All datasets use the same classes with several images each, so
    some can be held out: classes are ordered by the hashes of their names and contribute
    `IMAGES_A_CLASS` each, and again as many while there is room. The selection depends on names
    only; a larger limit adds images to those of a smaller one.
    """

    def hashed(name: str) -> bytes:
        return hashlib.blake2b(name.encode(), digest_size=8, person=b"smoke run").digest()

    of_class: Counter[str] = Counter()
    order: dict[int, tuple[int, bytes, int]] = {}
    hashes = {name: hashed(name) for name in set(classes)}
    for position in sorted(range(len(keys)), key=lambda position: hashed(keys[position])):
        name = classes[position]
        order[position] = (of_class[name] // IMAGES_A_CLASS, hashes[name], of_class[name])
        of_class[name] += 1
    return sorted(sorted(order, key=order.__getitem__)[:limit])


def pack_folder(recipe: Recipe, name: str) -> Path:
    """`RUNS/packs/<set>-<hash>`; models with the same transform share a pack."""
    return _folder(recipe, identity(recipe, kind_of(recipe.dataset, name)))


def _folder(recipe: Recipe, identity: Mapping[str, Any]) -> Path:
    return Path(recipe.runs) / "packs" / f"{identity['set']}-{short_digest(identity)}"


def identity(recipe: Recipe, kind: Kind) -> dict[str, Any]:
    """The settings of a recipe that determine a dataset's pack."""
    key, dataset = kind.identity(), kind.dataset
    if dataset.limit:
        key["limit"] = dataset.limit
    if dataset.undecodable == "skip":
        key["undecodable"] = "skip"
    if decoding.colour(dataset.background) != decoding.colour(decoding.WHITE):
        key["background"] = list(decoding.colour(dataset.background))
    return key | {
        "set": kind.name,
        "transform": image_transform.transform(recipe.model).spec,
        "format": PACK_FORMAT,
    }


def _check_identity(pack: Pack, expected: Mapping[str, Any]) -> None:
    """Raise ValueError if a pack's options differ from those of its folder's name."""
    stored = pack.manifest["extra"].get("identity", {})
    keys = [key for key in sorted(stored | expected) if stored.get(key) != expected.get(key)]
    if keys:
        raise ValueError(
            f"{pack.folder} contains another pack: "
            + ", ".join(f"{key}: {stored.get(key)!r}, not {expected.get(key)!r}" for key in keys)
            + "; move it back to its original folder, and run the command again"
        )


def size_bytes(recipe: Recipe, images: int) -> int:
    """Bytes of a pack of `images` images, including padding; a rough upper bound for JPEG."""
    size = recipe.model.image_size
    share = JPEG_SHARE if recipe.dataset.pack_format == "jpeg" else 1
    page_size = page_size_of(size, size)
    pages = 1 + math.ceil(images / (page_size // round(3 * size**2 * share)))
    return pages * page_size + images * SAMPLE
