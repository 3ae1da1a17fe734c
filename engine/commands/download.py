"""`rib download`: the sets of ImageNet-RIB, and models' weights, to where the engine finds them."""

from __future__ import annotations

import argparse
import getpass
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.data.downloads import Target
    from engine.data.sources import Source

ALL = "all"
BENCHMARK = "imagenet_rib"
AT_ONCE = 4  # files that come side by side


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("download", help="get the sets of ImageNet-RIB, and weights")
    parser.add_argument("sets", nargs="*", metavar="SET", help="imagenet_v2, ..., or all")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder of all sets")
    parser.add_argument(
        "--from", type=Path, metavar="DIR", dest="local", help="take the files that this folder has"
    )
    parser.add_argument("--accept", action="store_true", help="accept the terms of the sets")
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", default=[],
        help="weights of these models, or of all seven, into the hub's cache",
    )  # fmt: skip
    parser.add_argument("--sources", type=Path, help="a file as recipes/sources.yaml: mirrors")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from engine.data import downloads, sources
    from engine.errors import nearest

    known = sources.read(arguments.sources or sources.FILE)
    names = list(known) if ALL in arguments.sets else arguments.sets
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"there is no source of {wrong[0]!r}{nearest(wrong[0], [*known, ALL])}")
    if not names and not arguments.models:
        raise ValueError(f"nothing to download; name sets ({', '.join(known)}, {ALL}) or --models")
    if names and arguments.to is None:
        raise ValueError("--to DIR is missing: the folder for the sets")
    faults: list[str] = []
    if names:
        with downloads.locked(arguments.to):
            faults += _sets({name: known[name] for name in names}, arguments)
    faults += _models(arguments.models)
    if faults:
        raise ValueError("; ".join(faults))


def _sets(sources: Mapping[str, Source], arguments: argparse.Namespace) -> list[str]:
    """Bring every set to the folder. Returns what is not there at the end, and why."""
    from engine.data import downloads

    folder = arguments.to
    _accept(sources, folder, arguments.accept)
    faults, missing = [], []
    for name, source in sources.items():
        lacking = downloads.missing(folder, name, source)
        if not lacking:
            print(f"{name} is there: {folder / name}")
        for target in lacking:
            if not target.archive.is_file() and arguments.local is not None:
                downloads.take(target, arguments.local)
            if not target.archive.is_file() and not target.file.addresses:
                faults.append(f"{name}: {target.file.name} is missing. {source.form}")
            else:
                missing.append(target)
    passwords = _passwords(missing)
    sizes = {target.key: _size(target) for target in missing}
    _check_room(missing, sizes, folder)
    return faults + _transfer(missing, sizes, passwords)


def _accept(sources: Mapping[str, Source], folder: Path, yes: bool) -> None:
    """Show terms that the user has not accepted yet. Raises ValueError where they are refused."""
    from engine.data import downloads

    accepted = downloads.accepted(folder)
    pending = {n: source for n, source in sources.items() if accepted.get(n) != source.terms}
    if not pending:
        return
    print("Terms (the authors' pages have them in full):")
    for name, source in pending.items():
        print(f"  {name}: {source.terms} ({source.page})")
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError("add --accept to accept these terms")
        if input("Accept these terms? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("terms not accepted; nothing was downloaded")
    downloads.accept(folder, {name: source.terms for name, source in pending.items()})


def _passwords(missing: Sequence[Target]) -> dict[str, str]:
    """The passwords of zip files, which the user types before the hours of a download."""
    passwords = {}
    for target in missing:
        if target.source.password and sys.stdin.isatty():
            print(f"{target.file.name} opens with a password: {target.source.password}")
            passwords[target.key] = getpass.getpass("Password (it is not stored): ")
    return passwords


def _check_room(missing: Sequence[Target], sizes: Mapping[str, int], folder: Path) -> None:
    """Print what will be downloaded. Raises ValueError if the disk has no room for it."""
    from tqdm import tqdm

    needed = 0
    for target in missing:
        size = sizes[target.key]
        shown = f"{size / 1e9:.2f} GB" if size else "size not known"
        there = f", {target.arrived / 1e9:.2f} GB of it is there" if target.arrived else ""
        print(f"{target.name}: {target.file.name}, {shown}{there}")
        # A zip or gzip file is on the disk twice while it is unpacked.
        is_packed = target.file.unpack == "zip" or target.file.name.endswith((".gz", ".tgz"))
        needed += size * (1 + is_packed) - target.arrived
    free = shutil.disk_usage(folder).free
    if missing:
        total = sum(sizes.values())
        print(f"{total / 1e9:.2f} GB; {needed / 1e9:.2f} of {free / 1e9:.2f} GB free are needed")
    if needed > free:
        raise ValueError(
            f"{folder} has {tqdm.format_sizeof(free)}B free and {tqdm.format_sizeof(needed)}B are "
            "needed (archives are unpacked before they are removed): make room, name fewer sets, "
            "or give another folder by --to"
        )


def _size(target: Target) -> int:
    """Bytes of a file: published, or as a server says; 0 if nobody says."""
    from loaders import download

    if target.archive.is_file():
        return target.arrived
    for address in () if target.file.bytes else target.file.addresses:
        try:
            response = download.open_at(address)
        except (*download.MAY_PASS, download.Unavailable):
            continue
        if response is not None:  # the whole file, where a server has it
            with response.stream:
                return response.total or 0
    return target.file.bytes


def _transfer(
    files: Sequence[Target], sizes: Mapping[str, int], passwords: Mapping[str, str]
) -> list[str]:
    """Download files, `AT_ONCE` at a time, each with a bar, and unpack them one by one.
    Returns why some of them are not there.

    sizes: bytes of each file by its key, 0 where not known. passwords: of zip files, by key.
    """
    from tqdm import tqdm

    from loaders import download

    stop = threading.Event()

    def fetch(target: Target) -> None:
        size = sizes[target.key] or None
        with tqdm(
            desc=target.file.name, total=size, initial=target.arrived, unit="B",
            unit_scale=True, leave=False,
        ) as bar:  # fmt: skip

            def seen(done: int) -> None:
                bar.update(done - bar.n)

            progress = download.Progress(seen, stop)
            download.fetch(target.file.remote, target.archive.parent, progress)

    faults = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {pool.submit(fetch, target): target for target in files}
        try:
            for future in as_completed(futures):
                target = futures[future]
                try:
                    future.result()
                    tqdm.write(_unpack(target, passwords.get(target.key, "")))
                except ValueError as error:
                    faults.append(f"{target.name}: {error}")
        finally:  # an interrupt ends the threads too
            stop.set()
            pool.shutdown(cancel_futures=True)
    return faults


def _unpack(target: Target, password: str) -> str:
    """Bring a file's content to its place. Returns what to tell; ValueError without a password."""
    from tqdm import tqdm

    from engine.data import downloads
    from loaders import archives

    name = target.file.name
    is_zip = target.file.unpack == "zip"
    if is_zip and not password and archives.needs_password(target.archive):
        raise ValueError(
            f"{name} is there and opens with a password ({target.source.password}); run the "
            "same command at a terminal, and type it"
        )
    with tqdm(desc=f"unpack {name}", unit="file", leave=False) as bar:
        for done, total in downloads.unpack(target, password):
            bar.total = total
            bar.update(done - bar.n)
    return f"{target.name}: {name} has its published checksum; unpacked: {target.place}"


def _models(names: Sequence[str]) -> list[str]:
    """Fetch the weights of models. Returns why some could not be fetched."""
    if not names:
        return []
    from engine import recipe
    from engine.machine.files import cache_folder
    from engine.models import checkpoints

    if ALL in names:
        grids = recipe.each_model(BENCHMARK, recipe.parsed([{"model": ALL}]))
        names = [str(each.value) for grid in grids for each in grid]
    resolved = [recipe.of_sections(name, BENCHMARK, ()) for name in names]
    faults = []
    for each in resolved:
        try:
            checkpoints.fetch(each.model, cache_folder())
            print(f"{each.model.name}: {each.model.arch} is in its hub's cache")
        except ValueError as error:
            faults.append(f"{each.model.name}: {error}")
    return faults
