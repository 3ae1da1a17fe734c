"""`rib encode`: encode a dataset as a pack, for all models with the same transform."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from engine.data import packs, sources
from engine.data.kinds import kind_of
from engine.did_you_mean import nearest
from engine.machine.files import cache_folder
from engine.recipe import image_transform, kinds
from engine.recipe.finder import allow_users_files, is_users
from engine.recipe.resolve import recipe_of_sections
from engine.recipe.schema import Recipe
from loaders.adopt import adopt
from loaders.pack import IMAGES, MANIFEST, Pack
from loaders.trees import Listing, first_names, left_out


@allow_users_files()
def run(arguments: argparse.Namespace) -> None:
    if bool(arguments.set) == arguments.all:
        raise ValueError("give either the name of a dataset or --all")
    if bool(arguments.beton) != bool(arguments.classes) or (arguments.beton and arguments.all):
        raise ValueError(
            "--beton FILE encodes one dataset and requires --classes FILE, with one name per line"
        )
    if arguments.beton and (arguments.workers or arguments.partial or arguments.yes):
        raise ValueError(
            "--workers, --partial and --yes require --images; --beton only copies a file"
        )
    resolved = recipe_of_sections(arguments.model, arguments.dataset, arguments.overrides)
    if arguments.beton:
        return _adopt(resolved, str(arguments.set), arguments.beton, arguments.classes)
    if arguments.all:
        _encode_all(resolved, arguments)
    else:
        _check_name(resolved, arguments.set)
        _encode(resolved, arguments.set, arguments.images, arguments)


def _encode_all(resolved: Recipe, arguments: argparse.Namespace) -> None:
    """Encode all datasets in a folder, or at the places that the recipe says."""
    known, missing, faults = sources.read_sources(), [], []
    if arguments.images and not arguments.images.is_dir():
        raise ValueError(f"--images {arguments.images} is not a folder")

    def is_of_users(name: str) -> bool:
        return is_users(kinds.of_set(resolved.dataset, name).kind)

    # Users' kinds come last, because their files may change what encodes the others.
    for name in sorted(resolved.base_sets, key=is_of_users):
        place = arguments.images and sources.locate(arguments.images, name, known.get(name))
        if arguments.images and place is None:
            missing.append(name)
            continue
        try:
            _encode(resolved, name, place, arguments)
        except ValueError as error:  # continue with the other datasets
            faults.append(f"{name}: {error}")
    if missing:
        print(
            f"not in {arguments.images}: {', '.join(missing)}; "
            f"rib download {' '.join(missing)} --to {arguments.images}"
        )
    if len(missing) == len(resolved.base_sets):
        raise ValueError(f"{arguments.images} contains no dataset of {resolved.dataset.name}")
    if faults:
        raise ValueError("; ".join(faults))


def _adopt(resolved: Recipe, name: str, beton: Path, classes: Path) -> None:
    """Make a pack of a .beton file, where this model's campaigns look for the dataset."""
    _check_name(resolved, name)
    dataset = kinds.of_set(resolved.dataset, name)
    if columns := [*dataset.parts, *filter(None, [dataset.split.column])]:
        raise ValueError(
            f"{beton} does not say which {' and '.join(columns)} each image has, which {name} "
            "requires; encode the image files instead: --images FOLDER"
        )
    pack = adopt(
        beton,
        packs.pack_folder(resolved, name),
        name=name,
        classes=classes.read_text("utf-8-sig").splitlines(),
        size=resolved.model.image_size,
        transform_spec=image_transform.transform(resolved.model).spec,
        extra={
            "identity": packs.identity(resolved, kind_of(resolved.dataset, name)),
            "adopted": f"{beton.name}; resized by the program that wrote it",
        },
    )
    print(
        f"{name}: {len(pack):,} images of {len(pack.classes)} classes in {pack.folder}, copied "
        f"from {beton}, which is no longer needed"
    )


def _check_name(resolved: Recipe, name: str) -> None:
    if name not in (known := resolved.dataset.known):
        raise ValueError(f"{resolved.dataset.name} has no dataset {name!r}{nearest(name, known)}")


def _encode(
    resolved: Recipe, name: str, source: Path | None, arguments: argparse.Namespace
) -> None:
    """Encode a dataset unless its pack exists. source: its place, if not the recipe's."""
    kind = kind_of(resolved.dataset, name)
    folder = packs.pack_folder(resolved, name)
    if (folder / MANIFEST).is_file():
        there, published = len(Pack.open(folder)), kind.published_images()
        print(
            f"{name} is already encoded, {there:,}{f' of {published:,}' if published else ''} "
            f"images: {folder}. To encode it again, use another runs=FOLDER"
        )
        return
    if terms := kind.terms():
        print(terms)
    if kind.is_streamed():
        _confirm(resolved, name, kind.counts()[0], arguments.yes)
    print(f"looking for {name} in {source or resolved.dataset.root or 'its packages'}")
    source = source and source.absolute()
    listing = kind.listing(cache_folder(), source, partial=arguments.partial)
    _plan(resolved, name, listing, folder)
    pack = packs.make_pack(
        resolved,
        kind,
        listing,
        workers=arguments.workers,
        skip=arguments.partial or kind.dataset.undecodable == "skip",
    )
    for remark, names in pack.manifest.get("remarks", {}).items():
        print(f"  {remark}: {names}")
    if skipped := pack.manifest["skipped"]:
        print(f"  {name} lacks {left_out(skipped, len(pack) + len(skipped))}")
    print(f"{name}: {len(pack):,} images of {len(pack.classes)} classes in {pack.folder}")


def _plan(resolved: Recipe, name: str, listing: Listing, folder: Path) -> None:
    """Show what will be written."""
    needed = packs.size_bytes(resolved, len(listing.items))
    place = next(path for path in folder.parents if path.is_dir())
    # An interrupted run has already written part of this pack.
    part = folder.with_name(f".{folder.name}.tmp") / IMAGES
    there = part.stat().st_size if part.is_file() else 0
    free = shutil.disk_usage(place).free + there
    size = resolved.model.image_size
    print(
        f"{name}: {len(listing.items):,} images of {len(listing.classes)} classes at {size} px, "
        f"{resolved.dataset.pack_format}: about {needed / 1e9:.2f} GB of {free / 1e9:.2f} GB free"
    )
    for fault in listing.faults:
        print(f"  not as published: {fault}")
    if listing.left_out:
        print(f"  left out, not part of this dataset: {first_names(listing.left_out)}")
    if there:
        print("  resuming an interrupted run, if nothing changed")
    if needed > free:
        raise ValueError(
            f"{place} has {tqdm.format_sizeof(free)}B free, but {name} requires about "
            f"{tqdm.format_sizeof(needed)}B: free space, use another runs=FOLDER, or "
            "dataset.pack_format=jpeg"
        )


def _confirm(resolved: Recipe, name: str, images: int, yes: bool) -> None:
    """Raise ValueError unless the user confirms that a dataset of this size is to be encoded."""
    size = packs.size_bytes(resolved, images)
    print(
        f"dataset.subsample=full is all of {name}, about {size / 1e9:.0f} GB for each of the "
        "models' three transforms; dataset.subsample=50000 takes a balanced sample"
    )
    if not yes and not sys.stdin.isatty():
        raise ValueError(f"add --yes to encode all of {name}")
    if not yes and input("Encode all of it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("not confirmed; nothing was encoded")
