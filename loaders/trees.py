"""The files of a data set, wherever they lie: in folders, or in the .tar they came in.

A benchmark's sets come as archives of a million small files. A file in an uncompressed archive has
a place in it, so such an archive is read as it is; a compressed one has to be unpacked. Whatever is
wrong with a tree, such as a dead link or a damaged archive, is named before an image is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from loaders import parquet, rgb
from loaders.pack import Item

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
_BLOCK = 512  # bytes; an archive ends with at least one block of zeros
_DEEPEST = 64  # folders below each other
_LARGEST = 1 << 30  # bytes of an image
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


class Place(NamedTuple):
    """Where the bytes of a file are: a file, and a part of it unless `size` is -1."""

    path: str
    offset: int = 0
    size: int = -1

    @property
    def where(self) -> str:
        """The archive, for an error about a file in it; empty for a file of its own."""
        return f" in {os.path.basename(self.path)}" if self.size >= 0 else ""


class File(NamedTuple):
    """A file of a tree: its path below the root (posix), its place, its size and time of change."""

    path: str
    place: Place | parquet.Row
    stamp: str

    @property
    def parts(self) -> tuple[str, ...]:
        return PurePosixPath(self.path).parts

    @property
    def is_image(self) -> bool:
        """Whether its name is an image's; names that begin with a dot belong to file managers."""
        name = self.path.rpartition("/")[2]
        return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


@dataclass(frozen=True)
class Listing:
    """A set as it lies on a disk.

    `left_out`: files that are no images of the set. `faults`: how it differs from what was
    published, as far as is known. `group_depth`: how many folders of an item's key name the
    part of the set in which the item counts (IN-C: corruption and severity).
    """

    items: list[Item]
    classes: Sequence[str]
    fingerprint: str
    left_out: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    group_depth: int = 0


def files(root: Path) -> Iterator[File]:
    """Every file below a folder, or in a .tar.

    A folder that holds .tar files and no folders stands for what is in them: its other files are
    passed over, and a member outside any folder gets its archive's name as its folder.
    Raises ValueError naming what is missing, compressed, damaged, named in other than UTF-8, too
    deep, a pipe, a socket or a device, a link that leads nowhere, or a folder that is met twice.
    """
    if root.name.endswith(_COMPRESSED):
        raise ValueError(f"{root} is compressed and cannot be read in place; unpack it first")
    if root.suffix == ".tar" and root.is_file():
        yield from archive(root)
        return
    if not root.is_dir():
        raise ValueError(f"{root} is neither a folder nor a .tar archive")
    entries = sorted(root.iterdir())
    archives = [entry for entry in entries if entry.suffix == ".tar" and entry.is_file()]
    if archives and not any(entry.is_dir() for entry in entries):
        for path in archives:
            for file in archive(path):
                inside = "/" in file.path
                yield file if inside else file._replace(path=f"{path.stem}/{file.path}")
    else:
        yield from files_below(str(root))


def fingerprint(listed: Iterable[File]) -> str:
    """SHA-256 over path, size and time of change of the given files."""
    hashed = hashlib.sha256()
    for file in listed:
        hashed.update(stamped(file))
    return hashed.hexdigest()


def stamped(file: File) -> bytes:
    """The bytes of a file's line in a fingerprint."""
    return f"{file.path} {file.stamp}\n".encode()


def read(place: Place | parquet.Row) -> bytes:
    """The bytes of a file, or of an image in a row.

    Raises ValueError where an archive was cut inside it, and for more bytes than an image has.
    """
    if isinstance(place, parquet.Row):
        return parquet.read(place, _LARGEST)
    with open(place.path, "rb") as file:
        size = os.fstat(file.fileno()).st_size if place.size < 0 else place.size
        if size > _LARGEST:
            raise ValueError(f"{place.path} holds {size:,} bytes, too many for an image")
        file.seek(place.offset)
        data = file.read(place.size)
    if 0 <= place.size != len(data):
        raise ValueError(f"{place.path} ends inside this image")
    return data


def open_image(place: Place | parquet.Row) -> Image.Image:
    """The image as it is stored; raises as `read` and `rgb.open_image`."""
    return rgb.open_image(io.BytesIO(read(place)))


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def files_below(
    folder: str, prefix: str = "", seen: dict[tuple[int, int], str] | None = None
) -> Iterator[File]:
    """Every file below a folder in the order of their names; raises as `files`.

    prefix: the folder's path below the root. seen: folders by device and inode.
    """
    seen = {} if seen is None else seen
    if prefix.count("/") > _DEEPEST:
        raise ValueError(f"{folder} lies more than {_DEEPEST} folders deep; is it the right place?")
    status = os.stat(folder)
    # Links can make a tree endless, or exponentially large.
    first = seen.setdefault((status.st_dev, status.st_ino), folder)
    if first != folder:
        raise ValueError(f"{folder} is a link to {first}, which is read already; remove the link")
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        try:
            if entry.is_dir():
                yield from files_below(entry.path, f"{prefix}{entry.name}/", seen)
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


@contextlib.contextmanager
def _parsing() -> Iterator[None]:
    """tarfile raises a bare ValueError for some headers that are damaged: make it a TarError."""
    try:
        yield
    except ValueError as error:
        raise tarfile.ReadError(str(error)) from error


def _headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    with _parsing():
        yield from archive


def archive(path: Path) -> Iterator[File]:
    """Every file in a .tar. Raises ValueError as `files`, where the archive is cut at its end."""
    status = path.stat()
    try:
        yield from _members(Place(str(path), 0, status.st_size), "", status.st_mtime_ns)
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged or no .tar archive ({error})") from error


def _members(place: Place, prefix: str, changed: int) -> Iterator[File]:
    """Files of the archive at `place`; an archive inside counts as a folder."""
    path = place.path
    with open(path, "rb") as whole, contextlib.ExitStack() as stack:
        whole.seek(place.offset)
        with _parsing():
            archive = stack.enter_context(tarfile.open(fileobj=whole, mode="r:"))
        for member in _headers(archive):
            if member.islnk() or member.issym():
                raise ValueError(f"{path}: {member.name} is a link; unpack the archive")
            if member.issparse():  # a BMP's bytes would decode, to other pixels
                raise ValueError(f"{path}: {member.name} has holes; unpack the archive")
            name = PurePosixPath(prefix, member.name)
            content = Place(path, member.offset_data, member.size)
            if member.isfile() and name.suffix == ".tar":
                yield from _members(content, str(name.with_suffix("")), changed)
            elif member.isfile():
                yield File(_utf8(str(name), path), content, f"{member.size} {changed}")
        # tarfile takes a header that it cannot read for the end.
        whole.seek(archive.offset)
        is_end = whole.read(_BLOCK) == bytes(_BLOCK)
        if not is_end or archive.offset + _BLOCK > place.offset + place.size:
            name = f"{prefix}.tar" if prefix else "it"
            raise tarfile.ReadError(f"{name} does not end as one should")
