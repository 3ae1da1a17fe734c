"""Atomic writes, small CSV files, and the folders of downloads, runtime files and compiled code."""

from __future__ import annotations

import csv
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RecipeError
from loaders.files.durable import read_small
from loaders.files.root import Root


def cache_folder() -> Path:
    """Returns the folder of downloads that all runs of a user share: $RIB_CACHE, or ~/.cache/rib.

    Raises ValueError if the user has no home folder.
    """
    if chosen := os.environ.get("RIB_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "rib"
    except RuntimeError as error:  # a container's user may be in no /etc/passwd
        raise ValueError("this user has no home folder; set RIB_CACHE to a folder") from error


def runtime_folder() -> Path:
    """Returns the user's folder on this machine for files that running processes share; makes it.

    Raises PermissionError if another user owns it or can write to it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.access(runtime, os.W_OK):
        folder = Path(runtime) / "rib"
    else:
        folder = Path(tempfile.gettempdir()) / f"rib-{os.getuid()}"
    return _private(folder, "XDG_RUNTIME_DIR")


def compiled_folder() -> Path:
    """Returns the user's folder for code that torch compiles, shared by all jobs and nodes; makes
    it.

    Inductor unpickles the files there, so the folder belongs to the user alone, even if a group
    shares $RIB_CACHE.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    return _private(cache / f"compiled-{os.getuid()}", "TORCHINDUCTOR_CACHE_DIR")


def _private(folder: Path, variable: str) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not yours; remove it, or set {variable}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others can write to {folder}; remove it, or set {variable}")
    return folder


def write_atomic(path: Path, data: bytes, root: Root | None = None) -> None:
    """Replaces `path` by `data` atomically: temporary name, fsync, rename.

    root: a folder below which links are not followed. Raises IsADirectoryError, with a remedy, if a
    folder has this name.
    """
    (root or Root(path.parent)).write(path, data)


@contextmanager
def room_for(file: Path) -> Iterator[None]:
    """Turns an OSError into one that names the file and says that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file} cannot be written ({error}); finished work is safe: make room, or make its "
            "folder writable, and run the same command again"
        ) from error


def read_csv_rows(path: Path, columns: str, key: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of the small CSV file that a key names, each after the number of its line.

    Raises RecipeError, naming the file, for other columns and a file of another form.
    """
    try:
        rows = csv.reader(io.StringIO(read_small(path).decode("utf-8-sig"), newline=""))
        if next(rows, None) != columns.split(","):
            raise RecipeError(f"{path}, line 1: write the columns there, {columns}")
        for row in rows:
            yield rows.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"{key}={path} is not a CSV file in UTF-8 ({error})") from error
