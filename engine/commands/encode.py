"""`rib encode`: encode a published dataset as a pack, for all models with the same transform."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from engine import recipe
from engine.data import imagenet, packs, sources
from engine.data.kinds import ImageNet, kind_of
from engine.recipe import preprocessing
from engine.recipe.schema import Recipe
from loaders.adopt import adopt
from loaders.encode import left_out
from loaders.pack import IMAGES, MANIFEST, Pack
from loaders.trees import Listing, first_names


def run(arguments: argparse.Namespace) -> None:
    if bool(arguments.set) == arguments.all:
        raise ValueError("give either the name of a dataset or --all")
    if bool(arguments.beton) != bool(arguments.classes) or (arguments.beton and arguments.all):
        raise ValueError(
            "--beton FILE encodes one dataset and requires --classes FILE, with one name per line"
        )
    if arguments.beton and (arguments.workers or arguments.partial or arguments.yes):
        raise ValueError(
            "--workers, --partial and --yes require --source; --beton only copies a file"
        )
    resolved = recipe.of_sections(arguments.model, arguments.dataset, arguments.overrides)
    if arguments.beton:
        return _adopt(resolved, str(arguments.set), arguments.beton, arguments.classes)
    if not isinstance(kind := kind_of(resolved.dataset), ImageNet):
        raise ValueError(
            f"{arguments.dataset} needs no encoding: the engine encodes it when a recipe needs it"
        )
    if arguments.set:
        kind.identity(arguments.set)  # raises for an unknown name
    if arguments.all:
        _encode_all(resolved, kind, arguments)
    else:
        _encode(resolved, kind, str(arguments.set), arguments.source, arguments)


def _encode_all(resolved: Recipe, kind: ImageNet, arguments: argparse.Namespace) -> None:
    """Encode all datasets in a folder."""
    known, missing, faults = sources.read(), [], []
    if not arguments.source.is_dir():
        raise ValueError(f"--source {arguments.source} is not a folder")
    for name in resolved.base_sets:
        place = sources.locate(arguments.source, name, known.get(name))
        if place is None:
            missing.append(name)
            continue
        try:
            _encode(resolved, kind, name, place, arguments)
        except ValueError as error:  # continue with the other datasets
            faults.append(f"{name}: {error}")
    if missing:
        print(
            f"not in {arguments.source}: {', '.join(missing)}; "
            f"rib download {' '.join(missing)} --to {arguments.source}"
        )
    if len(missing) == len(resolved.base_sets):
        raise ValueError(f"{arguments.source} contains no dataset of {resolved.dataset.name}")
    if faults:
        raise ValueError("; ".join(faults))


def _adopt(resolved: Recipe, name: str, beton: Path, classes: Path) -> None:
    """Make a pack of a .beton file, where this model's campaigns look for the dataset."""
    if name not in resolved.dataset.known:
        known = ", ".join(resolved.dataset.known)
        raise ValueError(f"{resolved.dataset.name} has no dataset {name!r}; it has {known}")
    if kind_of(resolved.dataset).has_parts(name):
        raise ValueError(
            f"{beton} does not say which photo and corruption each image shows, which {name} "
            "requires; encode the image files instead: --source FOLDER"
        )
    pack = adopt(
        beton,
        packs.pack_folder(Path(resolved.runs), resolved.dataset, resolved.model, name),
        name=name,
        classes=classes.read_text("utf-8-sig").splitlines(),
        size=resolved.model.image_size,
        transform_spec=preprocessing.transform(resolved.model).spec,
        extra={
            "identity": packs.identity(resolved.dataset, resolved.model, name),
            "adopted": f"{beton.name}; resized by the program that wrote it",
        },
    )
    print(
        f"{name}: {len(pack):,} images of {len(pack.classes)} classes in {pack.folder}, copied "
        f"from {beton}, which is no longer needed"
    )


def _encode(
    resolved: Recipe, kind: ImageNet, name: str, source: Path, arguments: argparse.Namespace
) -> None:
    """Encode a dataset unless its pack exists."""
    folder = packs.pack_folder(Path(resolved.runs), resolved.dataset, resolved.model, name)
    if (folder / MANIFEST).is_file():
        there = len(Pack.open(folder))
        print(
            f"{name} is already encoded, {there:,} of {kind.counts(name)[0]:,} "
            f"images: {folder}. To encode it again, use another runs=FOLDER"
        )
        return
    if name == imagenet.OBJECTNET:
        print(imagenet.LICENCE)
    if kind.is_streamed(name):
        _confirm(resolved, arguments.yes)
    print(f"looking for {name} in {source}")
    listing = kind.read(name, source.absolute(), partial=arguments.partial)
    _plan(resolved, name, listing, folder)
    pack = packs.make_pack(
        resolved,
        name,
        listing,
        workers=arguments.workers,
        skip=arguments.partial or resolved.dataset.undecodable == "skip",
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


def _confirm(resolved: Recipe, yes: bool) -> None:
    """Raise ValueError unless the user confirms that all of IN-C is to be encoded."""
    size = packs.size_bytes(resolved, imagenet.SIZES[imagenet.IMAGENET_C].images)
    print(
        f"dataset.subsample=full is all of imagenet_c, about {size / 1e9:.0f} GB for each of the "
        "models' three transforms; dataset.subsample=50000 takes a balanced sample"
    )
    if not yes and not sys.stdin.isatty():
        raise ValueError("add --yes to encode all of imagenet_c")
    if not yes and input("Encode all of it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("not confirmed; nothing was encoded")
