"""Converts downloaded archives to the forms that `loaders.trees` reads: a plain .tar, or a folder.

Compressed tars are decompressed, which costs no space for images and leaves one file. An output
gets its name only when it is complete.
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

from loaders.fetch import zip_cipher
from loaders.files.durable import sync, whole
from loaders.files.root import Root, move

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 22  # bytes
_LARGEST = 1 << 28  # maximum bytes of a member, which is an image
_DEEPEST = 64  # maximum nesting of folders
# Errors of zipfile and its decompressors for unreadable bytes (OSError: bz2).
_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError)
_DAMAGE += (lzma.LZMAError, struct.error, zlib.error)


def to_tar(archive: Path, path: Path) -> None:
    """Moves an archive to `path` as a plain .tar, decompressing gzip.

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
    """Unpacks a zip file to `folder` and removes it, reusing the members that an earlier call
    unpacked.

    Yields (members done, members in total). Raises ValueError for a damaged archive and
    PasswordError for a wrong password.
    """
    fresh = archive.with_name(f"{archive.name}.unpacked")
    with _opened(archive) as opened:
        # ZipInfo.is_dir fails for an empty name.
        members = [member for member in opened.infolist() if not member.filename.endswith("/")]
        if not members:
            raise ValueError(f"{archive} has no files; remove it and download it again")
        for done, member in enumerate(members, start=1):
            _unzip_member(archive, opened, member, fresh, password)
            yield done, len(members)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.sync()  # once for all members, up to 50,000
    move(fresh, folder)
    Root(archive.parent).remove(archive)


def _unzip_member(
    archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, fresh: Path, password: str
) -> None:
    name, root = PurePosixPath(member.filename), Root(fresh.parent, fresh.name)
    path = fresh / member.filename
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise ValueError(f"{archive}: the name {member.filename!r:.99} leads out of the archive")
    if len(name.parts) > _DEEPEST:
        raise ValueError(f"{archive}: {str(name)!r:.100} is more than {_DEEPEST} folders deep")
    if max(member.file_size, member.compress_size) > _LARGEST:
        raise ValueError(f"{archive}: {name} has {member.file_size:,} bytes, too many for an image")
    if root.size(path) == member.file_size:
        return
    try:
        content = zip_cipher.read(opened, member, password)
    except zip_cipher.PasswordError:
        raise
    except _DAMAGE as error:
        other = ", or the password is wrong" * (member.flag_bits & 1)  # 1 in 256 passes its check
        raise ValueError(
            f"{archive}: {name} cannot be read ({error}{other}); remove the archive and download "
            "it again, or unpack it with 7z and encode that folder"
        ) from error
    with whole(path):
        root.write(path, content, durable=False)


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except _DAMAGE as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> ValueError:
    return ValueError(f"{archive} is damaged ({error}); remove it and download it again")
