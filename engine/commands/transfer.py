"""Files of sets, downloaded several at a time and unpacked one by one, under one progress bar."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from engine.data import downloads
from engine.data.downloads import Record, Target
from loaders import archives
from loaders.download import Progress


def run(
    files: Sequence[Target],
    sizes: Mapping[str, int],
    record: Record,
    parallel: int,
    passwords: Mapping[str, str],
) -> list[str]:
    """Bring files to their places. Returns why some of them are not there.

    sizes: bytes of each file by its key, 0 where not known. passwords: of zip files, by key.
    """
    stop, lock = threading.Event(), threading.Lock()
    arrived = {target.key: target.arrived for target in files}
    bar = tqdm(
        desc="download", total=sum(sizes.values()) or None, initial=sum(arrived.values()),
        unit="B", unit_scale=True, leave=False,
    )  # fmt: skip

    def fetch(target: Target) -> None:
        def seen(done: int, total: int | None) -> None:
            with lock:
                bar.update(done - arrived[target.key])
                arrived[target.key] = done

        downloads.fetch(target, record, Progress(seen, stop))

    faults = []
    with bar, ThreadPoolExecutor(parallel) as pool:
        futures = {pool.submit(fetch, target): target for target in files}
        try:
            for future in as_completed(futures):
                target = futures[future]
                try:
                    future.result()
                    bar.write(_unpack(target, record, passwords.get(target.key, "")))
                except ValueError as error:
                    faults.append(f"{target.name}: {error}")
        finally:  # an interrupt ends the threads too
            stop.set()
            pool.shutdown(cancel_futures=True)
    return faults


def _unpack(target: Target, record: Record, password: str) -> str:
    """Bring a file's content to its place. Returns what to tell; ValueError without a password."""
    name, checked = target.file.name, "has its published checksum"
    if sha256 := record.checksum(target.key):
        checked = f"has no published checksum; recorded: sha256 {sha256}"
    if target.file.unpack == "zip" and archives.needs_password(target.archive):
        if not password:
            raise ValueError(
                f"{name} is there and opens with a password ({target.source.password}); run the "
                "same command at a terminal, and type it"
            )
        archives.check_password(target.archive, password)
    with tqdm(desc=f"unpack {name}", unit="file", leave=False) as bar:
        for done, total in downloads.unpack(target, password):
            bar.total = total
            bar.update(done - bar.n)
    return f"{target.name}: {name} {checked}; unpacked: {target.place}"
