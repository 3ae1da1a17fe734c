"""The files of a data set, wherever they lie: in folders, or in the .tar they came in.

A benchmark's sets come as archives of a million small files. An uncompressed archive gives the
place of each of its files, so it is read where it is; a compressed one has no such places and has
to be unpacked. What is wrong with a tree (a loop, a dead link, a strange archive) is named here.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm"})
_BLOCK = 512  # bytes; an archive ends with at least one block of zeros
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


class Place(NamedTuple):
    """Where the bytes of a file are: a file, and a part of it unless `size` is -1."""

    path: str
    offset: int = 0
    size: int = -1


class File(NamedTuple):
    """A file of a tree: its path below the root (posix), its place, and what changes with it."""

    path: str
    place: Place
    stamp: str

    @property
    def parts(self) -> tuple[str, ...]:
        return PurePosixPath(self.path).parts

    @property
    def is_image(self) -> bool:
        """By its name; names that begin with a dot belong to file managers."""
        name = self.path.rpartition("/")[2]
        return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def files(root: Path) -> Iterator[File]:
    """Every file below a folder, or in a .tar.

    A folder that holds .tar files and no folders stands for what is in them: its other files are
    passed over, and a member outside any folder gets its archive's name as its folder.
    Raises ValueError naming what is missing, compressed, damaged, named in other than UTF-8, or a
    link that leads nowhere or in a circle.
    """
    if root.name.endswith(_COMPRESSED):
        raise ValueError(f"{root} is compressed and cannot be read in place; unpack it first")
    if root.suffix == ".tar" and root.is_file():
        yield from _archive(root)
        return
    if not root.is_dir():
        raise ValueError(f"{root} is neither a folder nor a .tar archive")
    entries = sorted(root.iterdir())
    archives = [entry for entry in entries if entry.suffix == ".tar" and entry.is_file()]
    if archives and not any(entry.is_dir() for entry in entries):
        for archive in archives:
            for file in _archive(archive):
                inside = "/" in file.path
                yield file if inside else file._replace(path=f"{archive.stem}/{file.path}")
    else:
        yield from _folder(str(root), "", ())


def fingerprint(found: Iterable[File]) -> str:
    """SHA-256 over path, size and time of change of the given files."""
    hashed = hashlib.sha256()
    for file in found:
        hashed.update(stamped(file))
    return hashed.hexdigest()


def stamped(file: File) -> bytes:
    """What a fingerprint hashes of a file."""
    return f"{file.path} {file.stamp}\n".encode()


def read(place: Place) -> bytes:
    """The bytes of a file. Raises ValueError where an archive was cut inside it."""
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        data = file.read(place.size)
    if 0 <= place.size != len(data):
        raise ValueError(f"{place.path} ends inside this image")
    return data


def open_image(place: Place) -> Image.Image:
    """The image as it is stored: its mode is its own, its orientation tag is not applied."""
    image = Image.open(io.BytesIO(read(place)))
    image.load()
    return image


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _folder(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[File]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise ValueError(f"{folder} is a link to a folder that it lies in; remove the link")
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        try:
            if entry.is_dir():
                yield from _folder(entry.path, f"{prefix}{entry.name}/", (*above, here))
                continue
            status = entry.stat()
        except OSError as error:
            raise ValueError(f"{entry.path} cannot be read ({error.strerror})") from error
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would never end
            raise ValueError(f"{entry.path} is neither a file nor a folder; remove it")
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        yield File(_utf8(prefix + entry.name, folder), Place(entry.path), stamp)


def _utf8(name: str, place: str) -> str:
    """The name of a file at `place`; ValueError where no manifest could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: the name {name!a} is not UTF-8; rename it") from None
    return name


def _archive(path: Path) -> Iterator[File]:
    changed = path.stat().st_mtime_ns
    with path.open("rb") as whole:
        try:
            place = Place(str(path), 0, path.stat().st_size)
            yield from _members(whole, place, "", changed)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is damaged or no .tar archive ({error})") from error


def _members(whole: io.BufferedReader, place: Place, prefix: str, changed: int) -> Iterator[File]:
    """Files of the archive at `place`; an archive inside counts as a folder."""
    path = place.path
    whole.seek(place.offset)
    with tarfile.open(fileobj=whole, mode="r:") as archive:
        for member in archive:
            if member.islnk() or member.issym():
                raise ValueError(f"{path}: {member.name} is a link; unpack the archive")
            if not member.isfile():
                continue
            name = PurePosixPath(prefix, member.name)
            here = Place(path, member.offset_data, member.size)
            if name.suffix == ".tar":
                inner = str(name.with_suffix(""))
                with open(path, "rb") as again:
                    yield from _members(again, here, inner, changed)
                continue
            yield File(_utf8(str(name), path), here, f"{member.size} {changed}")
        # tarfile takes a header that it cannot read for the end.
        end = archive.offset
    whole.seek(end)
    if whole.read(_BLOCK) != bytes(_BLOCK) or end + _BLOCK > place.offset + place.size:
        raise tarfile.ReadError(f"{f'{prefix}.tar' if prefix else 'it'} does not end as one should")
