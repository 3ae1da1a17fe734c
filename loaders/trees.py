"""Lists the files of a dataset in folders or in uncompressed .tar archives.

Benchmark datasets are archives of up to a million small files. An uncompressed archive is read in
place; a compressed one must be unpacked first. Faults of a tree, such as a dead link or a damaged
archive, raise an error before any image is read.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol

from PIL import Image

from loaders import decoding
from loaders.pack import Item

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
_BLOCK = 512  # bytes; an archive ends with at least one block of zeros
_DEEPEST = 64  # maximum nesting of folders
_LARGEST = 1 << 30  # maximum bytes of an image
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


class StoredImage(Protocol):
    """Where the bytes of an image are: a `Place`, or a row of a table (`loaders.parquet`)."""

    @property
    def where(self) -> str:
        """The part of a file, for errors; empty for a whole file."""
        ...

    def read(self, most: int) -> bytes:
        """Returns the bytes. Raises ValueError if they are damaged, or more than `most`."""
        ...


class Place(NamedTuple):
    """Where the bytes of a file are: a whole file if `size` is -1, else a part of it."""

    path: str
    offset: int = 0
    size: int = -1

    @property
    def bytes(self) -> int:
        """Number of bytes of the file."""
        return os.stat(self.path).st_size if self.size < 0 else self.size

    @property
    def where(self) -> str:
        """ " in ARCHIVE" for errors about a file in an archive; empty for a file on disk."""
        return f" in {os.path.basename(self.path)}" if self.size >= 0 else ""

    def read(self, most: int) -> bytes:
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size if self.size < 0 else self.size
            if size > most:
                raise ValueError(f"{self.path} has {size:,} bytes, too many for an image")
            file.seek(self.offset)
            data = file.read(self.size)
        if 0 <= self.size != len(data):
            raise ValueError(f"{self.path} ends inside this image")
        return data


class File(NamedTuple):
    """A file of a tree: its path below the root (posix), place, size and modification time."""

    path: str
    place: StoredImage
    stamp: str

    @property
    def parts(self) -> tuple[str, ...]:
        return PurePosixPath(self.path).parts

    @property
    def is_image(self) -> bool:
        """Whether the name is an image's. Names with a leading dot belong to file managers."""
        name = self.path.rpartition("/")[2]
        return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


@dataclass(frozen=True)
class Listing:
    """A dataset as found on disk.

    `left_out`: files that are not images of the dataset. `faults`: known differences from what was
    published. `columns`: names of the items' `values`, such as a split, a domain or a severity.
    """

    items: list[Item]
    classes: Sequence[str]
    fingerprint: str
    left_out: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def files(root: Path) -> Iterator[File]:
    """Yields each file below a folder or in a .tar.

    A folder with .tar files and no subfolders is read as the contents of the archives: its other
    files are skipped, and a member outside any folder gets its archive's name as its folder.

    Raises ValueError naming a root that is missing or compressed; an archive that is damaged; a
    name that is not UTF-8; a folder that is too deep or met twice; a pipe, socket or device; and a
    link that leads nowhere.
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
    """Returns the SHA-256 over path, size and modification time of the given files."""
    hashed = hashlib.sha256()
    for file in listed:
        hashed.update(stamped(file))
    return hashed.hexdigest()


def stamped(file: File) -> bytes:
    """The bytes of a file's line in a fingerprint."""
    return f"{file.path} {file.stamp}\n".encode()


def read_image(place: StoredImage) -> bytes:
    """Returns the bytes of an image. Raises ValueError if they are damaged, or too many."""
    return place.read(_LARGEST)


def open_image(place: StoredImage) -> Image.Image:
    """Returns the image as stored; raises as `read_image` and `decoding.open_image` do."""
    return decoding.open_image(io.BytesIO(read_image(place)))


def first_names(names: Sequence[str], most: int = 3) -> str:
    """Returns the first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def left_out(skipped: Sequence[Mapping[str, str]], count: int) -> str:
    """Describes the images that a pack lacks: how many of `count`, and the first by name."""
    named = first_names([f"{image['key']} ({image['reason']})" for image in skipped], 5)
    return f"{len(skipped)} of {count} images, which cannot be decoded: {named}"


def files_below(
    folder: str, prefix: str = "", seen: dict[tuple[int, int], str] | None = None
) -> Iterator[File]:
    """Yields each file below a folder in the order of names; raises as `files` does.

    prefix: the folder's path below the root. seen: folders by device and inode.
    """
    seen = {} if seen is None else seen
    if prefix.count("/") > _DEEPEST:
        raise ValueError(f"{folder} is more than {_DEEPEST} folders deep; is it the right place?")
    status = os.stat(folder)
    # Links can make a tree endless, or exponentially large.
    first = seen.setdefault((status.st_dev, status.st_ino), folder)
    if first != folder:
        raise ValueError(f"{folder} is a link to {first}, which was already read; remove the link")
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
    """Returns the name of a file at `place`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: the name {name!a} is not UTF-8; rename it") from None
    return name


def archive(path: Path) -> Iterator[File]:
    """Yields each file in a .tar. Raises ValueError as `files` does, and if it is truncated."""
    status = path.stat()
    try:
        yield from _members(Place(str(path), 0, status.st_size), "", status.st_mtime_ns)
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged or no .tar archive ({error})") from error


def _members(place: Place, prefix: str, changed: int) -> Iterator[File]:
    """Files of the archive at `place`; an inner archive counts as a folder."""
    path = place.path
    with open(path, "rb") as whole:
        whole.seek(place.offset)
        for member in _headers(whole, place.offset + place.size, prefix):
            if member.islnk() or member.issym():
                raise ValueError(f"{path}: {member.name} is a link; unpack the archive")
            if member.issparse():  # a BMP would decode to wrong pixels
                raise ValueError(f"{path}: {member.name} has holes; unpack the archive")
            name = PurePosixPath(prefix, member.name)
            content = Place(path, member.offset_data, member.size)
            if member.isfile() and name.suffix == ".tar":
                yield from _members(content, str(name.with_suffix("")), changed)
            elif member.isfile():
                yield File(_utf8(str(name), path), content, f"{member.size} {changed}")


def _headers(whole: IO[bytes], end: int, prefix: str) -> Iterator[tarfile.TarInfo]:
    """The members of the archive that begins where the file stands and ends before `end`."""
    try:
        with tarfile.open(fileobj=whole, mode="r:") as archive:
            yield from archive
            # tarfile treats an unreadable header as the end.
            whole.seek(archive.offset)
            if whole.read(_BLOCK) != bytes(_BLOCK) or archive.offset + _BLOCK > end:
                name = f"{prefix}.tar" if prefix else "it"
                raise tarfile.ReadError(f"{name} is truncated, or its end is damaged")
    except ValueError as error:  # as tarfile raises it for some damaged headers
        raise tarfile.ReadError(str(error)) from error
