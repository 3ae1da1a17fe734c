"""Converts downloaded archives to the forms that `loaders.trees` reads: a plain .tar, or a folder.

Compressed tars are decompressed, which costs no space for images and leaves one file. Zip files are
unpacked by unzip, since Python's zipfile decrypts only 1.4 MB/s. An output gets its name only when
it is complete.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from loaders.files.durable import sync, whole
from loaders.files.root import Root, move

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 22  # bytes
_LARGEST = 1 << 28  # maximum bytes of a member, which is an image
_DEEPEST = 64  # maximum nesting of folders
_TRIED = 8  # members; each accepts one of 256 wrong passwords
_WARNED = 1  # exit code of unzip: all is unpacked, with warnings
_FULL = (50, -signal.SIGXFSZ)  # a full disk, or the user's limit on a file
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
    """Unpacks a zip file to `folder` and removes it.

    Yields (members done, members in total). Raises ValueError for a damaged archive, a wrong
    password, links or names that lead out of the folder, or if unzip is missing; OSError for a full
    disk. While it unpacks, other users of the machine can see the password in the list of
    processes.
    """
    members = _members(archive, password)
    arriving, fresh = Root(archive.parent), archive.with_name(f"{archive.name}.unpacked")
    arriving.remove(fresh)
    arriving.make_new(fresh)
    try:
        for done, _ in enumerate(_lines(archive, fresh, password), start=1):
            yield min(done, len(members)), len(members)
        Root(fresh).check()
        unpacked = [fresh.joinpath(name).stat().st_size for name in Root(fresh).files()]
        if sorted(unpacked) != sorted(member.file_size for member in members):
            raise _damaged(archive, "its members have other sizes than it says")
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.sync()  # once for all members, up to 50,000
        move(fresh, folder)
    except BaseException:
        arriving.remove(fresh)
        raise
    arriving.remove(archive)


def _members(archive: Path, password: str) -> Sequence[zipfile.ZipInfo]:
    """The files of a zip file."""
    with _opened(archive) as opened:
        # ZipInfo.is_dir fails for an empty name.
        members = [member for member in opened.infolist() if not member.filename.endswith("/")]
        if not members:
            raise ValueError(f"{archive} has no files; remove it and download it again")
        for member in opened.infolist():
            name, size = PurePosixPath(member.filename), max(member.file_size, member.compress_size)
            if name.is_absolute() or ".." in name.parts or not name.parts:
                raise ValueError(f"{archive}: the name {str(name)!r:.99} leads out of the archive")
            if len(name.parts) > _DEEPEST:
                raise ValueError(
                    f"{archive}: {str(name)!r:.100} is more than {_DEEPEST} folders deep"
                )
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{archive}: {name} is a link, which is not allowed")
            if size > _LARGEST:
                raise ValueError(f"{archive}: {name} has {size:,} bytes, too many for an image")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(  # unzip does not end for some damaged bzip2 members
                    f"{archive}: {name} is not compressed by deflate; unpack the archive with 7z "
                    "and encode that folder"
                )
        for member in [member for member in members if member.flag_bits & 1][:_TRIED]:
            try:
                opened.open(member, pwd=password.encode()).close()
            except RuntimeError as error:
                raise ValueError(f"wrong password for {archive}") from error
            except _DAMAGE as error:
                raise _damaged(archive, error) from error
    return members


def _lines(archive: Path, folder: Path, password: str) -> Iterator[bytes]:
    """Runs unzip, and yields the lines that it prints, about one for each member."""
    # The paths begin with a dot, so unzip never takes them for options.
    secret = [f"-P{password}"] if password else []
    command = ["unzip", "-o", *secret, f"./{archive.name}", "-d", f"./{folder.name}"]
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                cwd=archive.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # unzip cannot ask at the terminal
            )
        except FileNotFoundError as error:
            raise ValueError("unzip was not found; install it: apt-get install unzip") from error
        with process:
            assert process.stdout is not None
            try:
                yield from process.stdout
                code = process.wait()
            finally:
                process.kill()
        errors.seek(0)
        said = " ".join(errors.read(500).decode(errors="replace").split())
    if code in _FULL:
        raise OSError(
            f"{archive.name} could not be unpacked (the disk is full); make room in "
            f"{archive.parent}, and run the same command again"
        )
    if code not in (0, _WARNED):
        raise _damaged(archive, f"unzip: {said or f'exit code {code}'}")


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except _DAMAGE as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, reason: object) -> ValueError:
    return ValueError(f"{archive} is damaged ({reason}); remove it and download it again")
