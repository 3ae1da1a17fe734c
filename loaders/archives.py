"""Downloaded archives in the form that `loaders.trees` reads: a .tar, or a folder.

Compressed tars lose their compression, which costs no space for images and leaves one file. What is
written has its name only once it is whole.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from loaders import zip_cipher
from loaders.files import sync, whole
from loaders.root import Root, move

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 22  # bytes
_LARGEST = 1 << 28  # bytes of a member, which is an image
_DEEPEST = 64  # folders below each other
# Errors of zipfile and its decompressors for unreadable bytes. An OSError is bz2's.
_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError)
_DAMAGE += (lzma.LZMAError, struct.error, zlib.error)


def to_tar(archive: Path, path: Path) -> None:
    """Move an archive to `path` as a plain .tar, decompressing gzip.

    Raises ValueError for a damaged archive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arriving, fresh = Root(archive.parent), archive.with_name(f"{archive.name}.tar")
    with arriving.open(archive) as file:
        if file.read(2) != _GZIP:
            move(archive, path)
            return
    with whole(fresh), gzip.open(archive, "rb") as packed, arriving.open(fresh, "wb") as plain:
        try:
            shutil.copyfileobj(packed, plain, _CHUNK)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _damaged(archive, error) from error
    sync(fresh)
    move(fresh, path)
    arriving.remove(archive)


def needs_password(archive: Path) -> bool:
    """Whether members of a zip file are encrypted. Raises ValueError for a damaged archive."""
    with _opened(archive) as opened:
        return any(member.flag_bits & 1 for member in opened.infolist())


def unzip(archive: Path, folder: Path, password: str = "") -> Iterator[tuple[int, int]]:
    """Unpack a zip file to `folder` and remove it; members that an earlier call left are taken.

    Yields how many members are done, and of how many. Raises ValueError for a damaged archive,
    PasswordError for another password.
    """
    fresh = archive.with_name(f"{archive.name}.unpacked")
    with _opened(archive) as opened:
        # zipfile's `is_dir` fails on an empty name
        members = [member for member in opened.infolist() if not member.filename.endswith("/")]
        if not members:
            raise ValueError(f"{archive} holds no files; remove it, and get it again")
        for done, member in enumerate(members, start=1):
            _unzip_member(archive, opened, member, fresh, password)
            yield done, len(members)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.sync()  # the members, of which there may be 50,000
    move(fresh, folder)
    Root(archive.parent).remove(archive)


def _unzip_member(
    archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, fresh: Path, password: str
) -> None:
    name, root = PurePosixPath(member.filename), Root(fresh.parent, fresh.name)
    path = fresh / member.filename
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise ValueError(f"{archive}: the name {member.filename!r:.99} leaves the archive; refused")
    if len(name.parts) > _DEEPEST:
        raise ValueError(f"{archive}: {str(name)!r:.100} lies more than {_DEEPEST} folders deep")
    if max(member.file_size, member.compress_size) > _LARGEST:
        raise ValueError(f"{archive}: {name} has {member.file_size:,} bytes, too many for an image")
    if root.size(path) == member.file_size:
        return
    try:
        content = zip_cipher.read(opened, member, password)
    except zip_cipher.PasswordError:
        raise
    except _DAMAGE as error:
        other = ", or the password is another" * (member.flag_bits & 1)  # 1 of 256 passes its check
        raise ValueError(
            f"{archive}: {name} cannot be read ({error}{other}); remove the archive and get it "
            "again, or unpack it with 7z and encode that folder"
        ) from error
    with whole(path):
        root.write(path, content, durable=False)


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except _DAMAGE as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> ValueError:
    return ValueError(f"{archive} is damaged ({error}); remove it, and get it again")
