"""`rib encode`: a pack of a published set's images, which models of one transform share."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.machine import first_line

if TYPE_CHECKING:
    from engine.data.kinds import ImageNet
    from engine.recipe.schema import Recipe
    from loaders.trees import Listing


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("encode", help="make a pack of a set's images, for every model")
    parser.add_argument("set", nargs="?", help="imagenet_val, imagenet_v2, objectnet, ...")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument(
        "--all", action="store_true", help="every set of --source that models are evaluated on"
    )
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument(
        "--source", type=Path,
        help="the set: a folder, a .tar, or webdataset or parquet files, also as a pattern; with "
        "--all the folder of all sets",
    )  # fmt: skip
    images.add_argument(
        "--beton", type=Path, help="a file of FFCV's own writer, of the model's size"
    )
    parser.add_argument("--classes", type=Path, help="of --beton: a line for each label's class")
    parser.add_argument("--model", required=True, help="models of one transform share the pack")
    parser.add_argument("--dataset", default="imagenet_rib", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0, help="processes; default: all cores")
    parser.add_argument(
        "--partial", action="store_true", help="accept missing images, and skip unreadable ones"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before the whole of IN-C")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from engine import recipe
    from loaders import shards

    if bool(arguments.set) == arguments.all:
        raise ValueError("name a set to encode, or give --all, and not both")
    if bool(arguments.beton) != bool(arguments.classes) or (arguments.beton and arguments.all):
        raise ValueError("--beton FILE is of one set, and needs --classes FILE: a name a line")
    if arguments.beton and (arguments.workers or arguments.partial or arguments.yes):
        raise ValueError("--workers, --partial and --yes are for --source; --beton copies a file")
    if arguments.workers < 0:
        raise ValueError(f"--workers {arguments.workers}: 0 takes all cores, 1 a single process")
    if arguments.source and not shards.exists(arguments.source):
        raise ValueError(f"--source {arguments.source}: there is no such folder or file")
    first_line.show(f"reading the model {arguments.model}")
    resolved = recipe.of_sections(arguments.model, arguments.dataset, arguments.overrides)
    if arguments.beton:
        return _adopt(resolved, str(arguments.set), arguments.beton, arguments.classes)
    from engine.data.kinds import ImageNet, kind_of  # imports torch

    if not isinstance(kind := kind_of(resolved.dataset), ImageNet):
        raise ValueError(f"{arguments.dataset} is encoded when a recipe needs it; nothing to do")
    if arguments.set:
        kind.identity(arguments.set)  # raises for a wrong name
    if arguments.all:
        _encode_all(resolved, kind, arguments)
    else:
        _encode(resolved, kind, str(arguments.set), arguments.source, arguments)


def _encode_all(resolved: Recipe, kind: ImageNet, arguments: argparse.Namespace) -> None:
    """Encode the sets that lie in a folder. Raises ValueError at the end for those that failed."""
    from engine.data import sources

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
        except ValueError as error:  # the sets that follow are encoded all the same
            faults.append(f"{name}: {error}")
    if missing:
        print(
            f"not in {arguments.source}: {', '.join(missing)}; "
            f"rib download {' '.join(missing)} --to {arguments.source}"
        )
    if len(missing) == len(resolved.base_sets):
        raise ValueError(f"{arguments.source} holds no set of {resolved.dataset.name}")
    if faults:
        raise ValueError("; ".join(faults))


def _adopt(resolved: Recipe, name: str, beton: Path, classes: Path) -> None:
    """Make a pack of a .beton file, where campaigns of this model and dataset look for the set."""
    from engine import models
    from engine.data import packs
    from engine.data.kinds import kind_of
    from loaders.adopt import adopt

    if name not in resolved.dataset.known:
        known = ", ".join(resolved.dataset.known)
        raise ValueError(f"{resolved.dataset.name} has no set {name!r}; it has {known}")
    if kind_of(resolved.dataset).has_parts(name):
        raise ValueError(
            f"{beton} does not say which photo and corruption an image is, which accuracies and "
            f"hold-outs of {name} need; encode the image files: --source FOLDER"
        )
    pack = adopt(
        beton,
        packs.pack_folder(Path(resolved.runs), resolved.dataset, resolved.model, name),
        name=name,
        classes=classes.read_text("utf-8-sig").splitlines(),
        size=resolved.model.image_size,
        transform_spec=models.transform(resolved.model).spec,
        extra={
            "identity": packs.identity(resolved.dataset, resolved.model, name),
            "adopted": f"{beton.name}; resized by the program that wrote it",
        },
    )
    print(
        f"{name}: {len(pack):,} images of {len(pack.classes)} classes in {pack.folder}, as {beton} "
        "has them; that file is not needed any more"
    )


def _encode(
    resolved: Recipe, kind: ImageNet, name: str, source: Path, arguments: argparse.Namespace
) -> None:
    """Encode a set unless there is a pack of it."""
    from engine.data import imagenet, packs
    from loaders.encode import left_out
    from loaders.pack import MANIFEST, Pack

    folder = packs.pack_folder(Path(resolved.runs), resolved.dataset, resolved.model, name)
    if (folder / MANIFEST).is_file():
        there = len(Pack.open(folder))
        print(
            f"{name} is encoded already, {there:,} of {kind.counts(name)[0]:,} "
            f"images: {folder}; another runs=FOLDER encodes it again, beside it"
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
    """Show what will be written. Raises ValueError if the disk has no room for it."""
    from tqdm import tqdm

    from engine.data.packs import size_bytes
    from loaders.pack import IMAGES
    from loaders.trees import first_names

    needed = size_bytes(resolved, len(listing.items))
    place = next(path for path in folder.parents if path.is_dir())
    # What an interrupted run of the same pack has written is not needed again.
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
        print(f"  left out, not of this set: {first_names(listing.left_out)}")
    if there:
        print("  an interrupted run of this pack is there; it goes on if nothing changed")
    if needed > free:
        raise ValueError(
            f"{place} has {tqdm.format_sizeof(free)}B free and {name} needs about "
            f"{tqdm.format_sizeof(needed)}B: make room, name another runs=FOLDER, or take "
            "dataset.pack_format=jpeg"
        )


def _confirm(resolved: Recipe, yes: bool) -> None:
    """Raise ValueError unless the user confirms the whole of IN-C."""
    from engine.data import imagenet
    from engine.data.packs import size_bytes

    size = size_bytes(resolved, imagenet.SIZES[imagenet.IMAGENET_C].images)
    print(
        f"dataset.subsample=full is all of imagenet_c, about {size / 1e9:.0f} GB for each of the "
        "models' three transforms; dataset.subsample=50000 takes a balanced part"
    )
    if not yes and not sys.stdin.isatty():
        raise ValueError("add --yes to encode all of imagenet_c")
    if not yes and input("Encode all of it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("not confirmed")
