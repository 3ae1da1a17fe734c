"""Downloaded archives in the form that `loaders.trees` reads: a .tar, or a folder.

Compressed tars lose their compression, which costs no space for images and leaves one file. What is
written has its name only once it is whole.
"""

from __future__ import annotations

import gzip
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from loaders.files import sync
from loaders.workers import ordered_map

_GZIP = b"\x1f\x8b"
_AT_ONCE = 256  # members
_CHUNK = 1 << 22  # bytes


class ArchiveError(ValueError):
    """An archive is damaged, or its password is another."""


def to_tar(archive: Path, path: Path) -> None:
    """Move an archive to `path` as a plain .tar; one that is no gzip file is moved as it is.

    Raises ArchiveError for a damaged archive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open("rb") as file:
        if file.read(2) != _GZIP:
            archive.replace(path)
            return
    fresh = archive.with_name(f"{archive.name}.tar")
    try:
        with gzip.open(archive, "rb") as packed, fresh.open("wb") as plain:
            shutil.copyfileobj(packed, plain, _CHUNK)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        fresh.unlink()
        raise ArchiveError(
            f"{archive} is damaged ({error}); remove it, and get it again"
        ) from error
    sync(fresh)
    fresh.replace(path)
    archive.unlink()


def needs_password(archive: Path) -> bool:
    """Whether members of a zip file are encrypted. Raises ArchiveError for a damaged archive."""
    with _opened(archive) as opened:
        return any(member.flag_bits & 1 for member in opened.infolist())


def check_password(archive: Path, password: str) -> None:
    """Raise ArchiveError where a password does not open the zip file's first encrypted member."""
    with _opened(archive) as opened:
        member = next(member for member in opened.infolist() if member.flag_bits & 1)
        try:
            opened.open(member, pwd=password.encode()).close()
        except RuntimeError as error:
            raise ArchiveError(f"this is not the password of {archive}") from error


def unzip(
    archive: Path, folder: Path, password: str = "", *, workers: int = 1
) -> Iterator[tuple[int, int]]:
    """Unpack a zip file to `folder` and remove it; members that an earlier call left are taken.

    Yields how many members are done, and of how many. Raises ArchiveError for a damaged archive and
    for another password.
    """
    fresh = archive.with_name(f"{archive.name}.unpacked")
    with _opened(archive) as opened:
        names = [member.filename for member in opened.infolist() if not member.is_dir()]
    tasks = [
        (archive, fresh, password, names[start : start + _AT_ONCE])
        for start in range(0, len(names), _AT_ONCE)
    ]
    done = 0
    for count in ordered_map(_unzip_members, tasks, min(workers, len(tasks) or 1)):
        done += count
        yield done, len(names)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh.replace(folder)
    sync(folder.parent)
    archive.unlink()


def _unzip_members(task: tuple[Path, Path, str, Sequence[str]]) -> int:
    archive, folder, password, names = task
    with _opened(archive) as opened:
        for name in names:
            member = opened.getinfo(name)
            path = folder / name
            if ".." in path.parts or not path.is_relative_to(folder):
                raise ArchiveError(f"{archive}: the name {name!r} leaves the archive; refused")
            if path.is_file():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            try:
                with opened.open(member, pwd=password.encode()) as packed, part.open("wb") as file:
                    shutil.copyfileobj(packed, file, _CHUNK)
            except (RuntimeError, zipfile.BadZipFile, EOFError, zlib.error) as error:
                raise ArchiveError(
                    f"{archive}: {name} cannot be read ({error}); remove the archive and get it "
                    "again, or give another password"
                ) from error
            part.replace(path)
    return len(names)


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ArchiveError(
            f"{archive} is damaged ({error}); remove it, and get it again"
        ) from error
