"""`rib download`: download datasets and models' weights."""

from __future__ import annotations

import argparse
import getpass
import itertools
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from engine.data import downloads, sources
from engine.data.downloads import Target
from engine.data.sources import Source
from engine.did_you_mean import nearest
from engine.machine.files import cache_folder
from engine.recipe.campaigns import each_model
from engine.recipe.overrides import parsed
from engine.recipe.resolve import recipe_of_sections
from loaders.fetch import archives, download
from loaders.files.durable import read_small

ALL = "all"
BENCHMARK = "imagenet_rib"
AT_ONCE = 8  # files in parallel; per host at most `loaders.fetch.download.CONNECTIONS`


def run(arguments: argparse.Namespace) -> int | None:
    known = sources.read_sources(arguments.sources or sources.FILE)
    every = [name for name, source in known.items() if not source.by_name_only]
    of_word = (every if name == ALL else [name] for name in arguments.sets)
    names = list(dict.fromkeys(itertools.chain.from_iterable(of_word)))
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"there is no source for {wrong[0]!r}{nearest(wrong[0], [*known, ALL])}")
    if not names and not arguments.models:
        raise ValueError(
            f"nothing to download: name datasets ({', '.join(known)}, {ALL}) or --models"
        )
    if arguments.check:
        return _check({name: known[name] for name in names})
    if names and arguments.to is None:
        raise ValueError("--to DIR is missing: give the folder for the datasets")
    faults: list[str] = []
    if names:
        with downloads.locked(arguments.to):
            faults += _sets({name: known[name] for name in names}, arguments)
    faults += _models(arguments.models)
    if faults:
        raise ValueError("; ".join(faults))


def _sets(sources: Mapping[str, Source], arguments: argparse.Namespace) -> list[str]:
    """Download every dataset to the folder. Returns what is still missing, and why."""
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
    passwords = _passwords(missing, arguments.password)
    sizes = {target.key: _size(target) for target in missing}
    _check_room(missing, sizes, folder)
    return faults + _transfer(missing, sizes, passwords)


def _check(sources: Mapping[str, Source]) -> int:
    """Ask every address and print its answer. Returns 1 if no address has a file, else 0."""
    total, unreachable = 0, []
    for name, source in sources.items():
        for file in source.files:
            sizes = []
            for address in file.addresses:
                size, answer = download.ask(address)
                sizes += [] if size is None else [size]
                if size and file.bytes and size != file.bytes:
                    answer += f", but {file.bytes:,} are published"
                print(f"{name}: {file.name}: {address}: {answer}")
            if not file.addresses:
                print(f"{name}: {file.name}: requires a form, at {source.page}")
            elif not sizes:
                copy = (
                    f"; a copy: hf download --repo-type dataset {source.hub}" if source.hub else ""
                )
                unreachable.append(f"{name}/{file.name}{copy}")
            total += file.bytes or max(sizes, default=0)
    print(f"{total / 1e9:.2f} GB in total, for files of known size")
    if unreachable:
        print(f"not reachable now: {'; '.join(unreachable)}")
    return int(bool(unreachable))


def _accept(sources: Mapping[str, Source], folder: Path, yes: bool) -> None:
    """Show terms that the user has not accepted yet."""
    accepted = downloads.accepted(folder)
    pending = {n: source for n, source in sources.items() if accepted.get(n) != source.terms}
    if not pending:
        return
    print("Terms (in full on the authors' pages):")
    for name, source in pending.items():
        print(f"  {name}: {source.terms} ({source.page})")
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError("add --accept to accept these terms")
        if input("Accept these terms? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("terms not accepted; nothing was downloaded")
    downloads.accept(folder, {name: source.terms for name, source in pending.items()})


def _passwords(missing: Sequence[Target], file: Path | None) -> dict[str, str]:
    """The passwords of zip files, from a file or typed before the download starts.

    Raises ValueError for a file without a password.
    """
    given = ""
    if file is not None:
        given = next(iter(read_small(file).decode("utf-8-sig").splitlines()), "").strip()
        if not given:
            raise ValueError(f"--password {file}: its first line is empty")
    passwords = {}
    for target in missing:
        if target.source.password and given:
            passwords[target.key] = given
        elif target.source.password and sys.stdin.isatty():
            print(f"{target.file.name} requires a password: {target.source.password}")
            passwords[target.key] = getpass.getpass("Password (it is not stored): ")
    return passwords


def _check_room(missing: Sequence[Target], sizes: Mapping[str, int], folder: Path) -> None:
    """Print what will be downloaded."""
    needed = 0
    for target in missing:
        size = sizes[target.key]
        shown = f"{size / 1e9:.2f} GB" if size else "unknown size"
        there = f", {target.arrived / 1e9:.2f} GB of it already here" if target.arrived else ""
        print(f"{target.name}: {target.file.name}, {shown}{there}")
        # While a zip or gzip file is unpacked, it is on the disk twice.
        is_packed = target.file.unpack == "zip" or target.file.name.endswith((".gz", ".tgz"))
        needed += size * (1 + is_packed) - target.arrived
    free = shutil.disk_usage(folder).free
    if missing:
        total = sum(sizes.values())
        print(f"{total / 1e9:.2f} GB; requires {needed / 1e9:.2f} of {free / 1e9:.2f} GB free")
    if needed > free:
        raise ValueError(
            f"{folder} has {tqdm.format_sizeof(free)}B free, but {tqdm.format_sizeof(needed)}B are "
            "required (archives are unpacked before they are removed): free space, name fewer "
            "datasets, or give another folder with --to"
        )


def _size(target: Target) -> int:
    """Bytes of a file: published, or from a server; 0 if unknown."""
    if target.archive.is_file():
        return target.arrived
    for address in () if target.file.bytes else target.file.addresses:
        size, _ = download.ask(address)
        if size is not None:
            return size
    return target.file.bytes


def _transfer(
    files: Sequence[Target], sizes: Mapping[str, int], passwords: Mapping[str, str]
) -> list[str]:
    """Download files, `AT_ONCE` in parallel with a progress bar each, and unpack them one by one.
    Returns why files are missing.

    sizes: bytes by file key, 0 if unknown. passwords: of zip files, by file key.
    """
    stop = threading.Event()

    def fetch(target: Target) -> None:
        size = sizes[target.key] or None
        with tqdm(
            desc=target.file.name, total=size, initial=target.arrived, unit="B",
            unit_scale=True, leave=False,
        ) as bar:  # fmt: skip

            def seen(done: int) -> None:
                bar.update(done - bar.n)

            progress = download.DownloadProgress(seen, stop)
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
                    hub = target.source.hub
                    copy = f". A copy in another format: `hf download --repo-type dataset {hub}`"
                    faults.append(f"{target.name}: {error}{copy * bool(hub)}")
        finally:  # also ends the threads after an interrupt
            stop.set()
            pool.shutdown(cancel_futures=True)
    return faults


def _unpack(target: Target, password: str) -> str:
    """Unpack a file. Returns a message for the user."""
    name = target.file.name
    is_zip = target.file.unpack == "zip"
    if is_zip and not password and archives.needs_password(target.archive):
        raise ValueError(
            f"{name} is downloaded but requires a password ({target.source.password}): run the "
            "same command in a terminal and type it, or give a file with --password"
        )
    with tqdm(desc=f"unpack {name}", unit="file", leave=False) as bar:
        for done, total in downloads.unpack(target, password):
            bar.total = total
            bar.update(done - bar.n)
    return f"{target.name}: {name} has its published checksum; unpacked: {target.place}"


def _models(names: Sequence[str]) -> list[str]:
    """Download the weights of models. Returns why some are missing."""
    if not names:
        return []
    from engine.models import pretrained  # here, because it imports timm

    if ALL in names:
        grids = each_model(BENCHMARK, parsed([{"model": ALL}]))
        names = [str(override.value) for grid in grids for override in grid]
    resolved = [recipe_of_sections(name, BENCHMARK, ()) for name in names]
    faults = []
    for each in resolved:
        try:
            pretrained.fetch(each.model, cache_folder())
            print(f"{each.model.name}: {each.model.arch} is in its hub's cache")
        except ValueError as error:
            faults.append(f"{each.model.name}: {error}")
    return faults
