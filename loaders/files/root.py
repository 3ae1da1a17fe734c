"""Access to an untrusted folder that never opens, writes or deletes anything outside it.

Names are resolved from the folder's descriptor, component by component (openat with O_NOFOLLOW), so
neither a link nor `..` leads out, even if a link appears meanwhile. The folder itself may be a
link. Paths handed to libraries (`at`, `file`) are checked in the same way but not held open:
another process could replace them by a link.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from loaders.files.durable import DamagedFile, check_regular, sync

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FLAGS = {
    "rb": os.O_RDONLY,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "a+b": os.O_RDWR | os.O_CREAT | os.O_APPEND,
    "r+b": os.O_RDWR | os.O_CREAT,
}
READABLE = 256 << 20  # maximum bytes of a file that is read as a whole
WRITING = re.compile(r"\..+\.[0-9a-f]{8}")  # name of a file that a process writes, or was killed


class Root:
    """The folder `path`. Name its contents by a relative text or by a whole Path.

    Methods raise DamagedFile for a name that leads outside the folder or through a link, and if
    they open something that is not a regular file.
    """

    def __init__(self, folder: Path, *inner: str) -> None:
        """inner: names of the folders that lead from `folder` to this one; none may be a link."""
        self._folder, self._inner = folder, inner
        self.path = folder.joinpath(*inner)

    def below(self, name: str | Path) -> Root:
        """Returns a folder below this one, which need not exist."""
        return Root(self._folder, *self._parts(name))

    def at(self, name: str | Path) -> Path:
        """Returns the path of a file or folder, which need not exist."""
        with suppress(FileNotFoundError):
            self._status(name)
        return self._path(name)

    def file(self, name: str | Path) -> Path:
        """Returns the path of a regular file. Raises FileNotFoundError if there is none."""
        with self.open(name):
            return self._path(name)

    def has(self, name: str | Path) -> bool:
        """Whether there is a regular file of this name."""
        return self.size(name) is not None

    def open(self, name: str | Path, mode: str = "rb") -> IO[bytes]:
        """Opens a regular file. mode: `rb`, `wb`, `ab`, `a+b` or `r+b`; all but `rb` create it."""
        path = self._path(name)
        with self._above(name, make=mode != "rb") as (folder, last):
            flags = _FLAGS[mode] | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                descriptor = os.open(last, flags, 0o666, dir_fd=folder)
            except IsADirectoryError as error:
                raise DamagedFile(f"{path} is a folder, not a file; move it away") from error
        try:
            check_regular(descriptor, path)
            return os.fdopen(descriptor, mode)
        except BaseException:
            os.close(descriptor)
            raise

    def read(self, name: str | Path, most: int = READABLE) -> bytes:
        """Returns the bytes of a file. Raises DamagedFile if there are more than `most`."""
        with self.open(name) as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise DamagedFile(f"{self._path(name)} has more than {most:,} bytes; delete it")
        return data

    def write(self, name: str | Path, data: bytes, *, durable: bool = True) -> Path:
        """Replaces a file atomically (temporary name, fsync, rename) and returns its path.

        durable: set to False to skip fsync when many files are synced together later. Raises
        IsADirectoryError, with a remedy, if a folder has this name.
        """
        path = self._path(name)
        with self._above(name, make=True) as (folder, last):
            temporary = f".{last}.{uuid.uuid4().hex[:8]}"
            new = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            try:
                with os.fdopen(os.open(temporary, new, 0o666, dir_fd=folder), "wb") as file:
                    file.write(data)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                os.replace(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
            except IsADirectoryError as error:
                raise IsADirectoryError(
                    f"{path} is a folder, not a file; move it away and run the same command again"
                ) from error
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
            if durable:
                os.fsync(folder)
        return path

    def make(self, name: str | Path) -> Path:
        """Makes a folder and its parents, and returns its path."""
        with self._above(name, make=True, inside=True):
            return self._path(name)

    def make_new(self, name: str | Path) -> Path:
        """Makes a folder and returns its path. Raises FileExistsError if the name is taken."""
        with self._above(name, make=True) as (folder, last):
            os.mkdir(last, dir_fd=folder)
        return self._path(name)

    def size(self, name: str | Path) -> int | None:
        """Returns the size of a regular file in bytes, or None if there is none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            status = self._status(name)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        return None

    def names(self, name: str | Path = "") -> list[str]:
        """Returns the sorted names in a folder, or none if it does not exist."""
        with suppress(FileNotFoundError), self._above(name, inside=True) as (folder, _):
            return sorted(os.listdir(folder))
        return []

    def folders(self, name: str | Path = "") -> list[str]:
        """Returns the sorted names of a folder's subfolders without links; none if missing."""
        with (
            suppress(FileNotFoundError),
            self._above(name, inside=True) as (folder, _),
            os.scandir(folder) as entries,
        ):
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        return []

    def stamps(self, name: str | Path = "") -> dict[str, tuple[int, int, int]]:
        """Inode, size and time of change of all that is in a folder, by name, without opening it;
        none if the folder does not exist. What changed has another stamp."""
        with (
            suppress(FileNotFoundError),
            self._above(name, inside=True) as (folder, _),
            os.scandir(folder) as entries,
        ):
            stamps = {}
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    stamps[entry.name] = status.st_ino, status.st_size, status.st_mtime_ns
            return stamps
        return {}

    def files(self, name: str | Path = "") -> list[str]:
        """Returns the sorted relative paths of all regular files below a folder, without following
        links; none if the folder does not exist."""
        return sorted(path for path, mode in self._walk(name) if stat.S_ISREG(mode))

    def check(self, name: str | Path = "") -> None:
        """Raises DamagedFile if anything below a folder is a link, a pipe, a socket or a device."""
        for path, mode in self._walk(name):
            if not stat.S_ISREG(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
                where = self._path(name) / path
                raise DamagedFile(f"{where} is {kind}, which is not allowed; remove it")

    def remove(self, name: str | Path) -> None:
        """Deletes a file, or a folder with its contents, if it exists. Deletes a link itself.

        The name must come from the engine, never from a file or a pattern.
        """
        with suppress(FileNotFoundError), self._above(name) as (folder, last):
            mode = os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                shutil.rmtree(last, ignore_errors=True, dir_fd=folder)
            else:
                os.unlink(last, dir_fd=folder)

    def rename(self, old: str | Path, new: str | Path) -> Path:
        """Renames a file or folder within this folder, durably, and returns the new path."""
        with self._above(old) as (before, last), self._above(new, make=True) as (folder, to):
            os.rename(last, to, src_dir_fd=before, dst_dir_fd=folder)
            os.fsync(folder)
        return self._path(new)

    def _path(self, name: str | Path) -> Path:
        return self._folder.joinpath(*self._parts(name))

    def _parts(self, name: str | Path) -> Sequence[str]:
        """The names that lead from `self._folder`, which may be a link, to `name`."""
        path = Path(name)
        if isinstance(name, Path) and name.is_relative_to(self.path):
            path = name.relative_to(self.path)
        elif isinstance(name, Path) or path.is_absolute() or "\0" in name:
            raise DamagedFile(f"{str(name)!r} is not in {self.path}, so it is not allowed")
        if ".." in path.parts:
            raise DamagedFile(f"{str(name)!r} leads out of {self.path}, so it is not allowed")
        return [*self._inner, *path.parts]

    @contextmanager
    def _above(
        self, name: str | Path, *, make: bool = False, inside: bool = False
    ) -> Iterator[tuple[int, str]]:
        """Yields the descriptor of the folder that contains `name`, and the last component.

        make: create missing folders on the way. inside: yield the folder's own descriptor instead.
        """
        parts = self._parts(name)
        *above, last = [*parts, "."] if inside or not parts else parts
        if make and not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
        here, part = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY), last
        try:
            for part in above:
                try:
                    inner = os.open(part, _FOLDER, dir_fd=here)
                except FileNotFoundError:
                    if not make:
                        raise
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=here)
                    inner = os.open(part, _FOLDER, dir_fd=here)
                os.close(here)
                here = inner
            part = last
            yield here, last
        except OSError as error:
            if error.errno is None:
                raise
            if _is_link(part, here):
                raise self._link(name) from error
            raise type(error)(error.errno, error.strerror, str(self._path(name))) from error
        finally:
            os.close(here)

    def _status(self, name: str | Path) -> os.stat_result:
        with self._above(name) as (folder, last):
            status = os.stat(last, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            raise self._link(name)
        return status

    def _walk(self, name: str | Path) -> Iterator[tuple[str, int]]:
        """Yields relative path and stat's mode of all that is below a folder, except folders."""
        with suppress(FileNotFoundError), self._above(name, inside=True) as (folder, _):
            for above, folders, files, here in os.fwalk(".", dir_fd=folder):
                for entry in (*folders, *files):
                    with suppress(FileNotFoundError):
                        mode = os.stat(entry, dir_fd=here, follow_symlinks=False).st_mode
                        if not stat.S_ISDIR(mode):
                            yield Path(above, entry).as_posix(), mode

    def _link(self, name: str | Path) -> Exception:
        return DamagedFile(
            f"{self._path(name)} leads through a link, which is not followed; remove the link and "
            "run the same command again"
        )


def move(old: Path, new: Path) -> None:
    """Renames between two folders that the user named, without following links at these names."""
    os.replace(old, new)
    sync(new.parent)


def _is_link(name: str, folder: int) -> bool:
    with suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False
