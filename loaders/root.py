"""An untrusted folder: nothing outside it is opened, written or deleted.

A name below it is reached from the folder's descriptor, component by component (openat with
O_NOFOLLOW), so neither a link nor `..` leads out, whenever it appears. Whether the folder itself is
a link is its user's choice. Paths that are handed to libraries (`at`, `file`) were checked in the
same way, but are not held: another process could put a link in their place.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from loaders.files import DamagedFile, check_regular, sync

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FLAGS = {
    "rb": os.O_RDONLY,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "r+b": os.O_RDWR | os.O_CREAT,
}
READABLE = 256 << 20  # bytes of a file that is read as a whole


class Root:
    """The folder `path`. What is below it is named by a text, relative to it, or by its whole Path.

    Every method raises DamagedFile for a name that leads outside, for a link on the way, and where
    something other than a regular file is in the place of one.
    """

    def __init__(self, folder: Path, *inner: str) -> None:
        """inner: names of folders below `folder` that lead to this one, none of them a link."""
        self._folder, self._inner = folder, inner
        self.path = folder.joinpath(*inner)

    def below(self, name: str | Path) -> Root:
        """A folder below this one, which need not exist yet."""
        return Root(self._folder, *self._parts(name))

    def at(self, name: str | Path) -> Path:
        """The path of a file or folder, or of what does not exist yet."""
        with suppress(FileNotFoundError):
            self._status(name)
        return self._path(name)

    def file(self, name: str | Path) -> Path:
        """The path of a regular file. Raises FileNotFoundError where there is no file."""
        with self.open(name):
            return self._path(name)

    def has(self, name: str | Path) -> bool:
        """Whether there is a regular file of this name."""
        return self.size(name) is not None

    @contextmanager
    def open(self, name: str | Path, mode: str = "rb") -> Iterator[IO[bytes]]:
        """A regular file: `rb`, `wb`, `ab`, or `r+b`, which makes it if it is missing."""
        with self.opened(name, mode) as file:
            yield file

    def opened(self, name: str | Path, mode: str = "rb") -> IO[bytes]:
        """As `open`; the caller closes the file."""
        path = self._path(name)
        with self._above(name, make=mode != "rb") as (folder, last):
            flags = _FLAGS[mode] | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(last, flags, 0o666, dir_fd=folder)
        try:
            check_regular(descriptor, path)
            return os.fdopen(descriptor, mode)
        except BaseException:
            os.close(descriptor)
            raise

    def read(self, name: str | Path, most: int = READABLE) -> bytes:
        """The bytes of a file. Raises DamagedFile for more than `most`."""
        with self.open(name) as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise DamagedFile(f"{self._path(name)} has more than {most:,} bytes; delete it")
        return data

    def write(self, name: str | Path, data: bytes, *, durable: bool = True) -> Path:
        """Replace a file by `data` in one step: temporary name, fsync, rename. Its path.

        durable: False where many files are brought to the disk at once later. Raises
        IsADirectoryError, with a remedy, where a folder is in the way.
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
                    f"{path} is a folder in place of a file; move it away and run the same command "
                    "again"
                ) from error
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
            if durable:
                os.fsync(folder)
        return path

    def make(self, name: str | Path) -> Path:
        """Make a folder, with those above it; its path."""
        with self._above(name, make=True, inside=True):
            return self._path(name)

    def make_new(self, name: str | Path) -> Path:
        """Make a folder. Raises FileExistsError where something has its name."""
        with self._above(name, make=True) as (folder, last):
            os.mkdir(last, dir_fd=folder)
        return self._path(name)

    def size(self, name: str | Path) -> int | None:
        """Bytes of a regular file; None where there is none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            status = self._status(name)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        return None

    def names(self, name: str | Path = "") -> list[str]:
        """The names in a folder, sorted; none where it does not exist."""
        with suppress(FileNotFoundError), self._above(name, inside=True) as (folder, _):
            return sorted(os.listdir(folder))
        return []

    def folders(self, name: str | Path = "") -> list[str]:
        """The names of the folders in a folder, sorted, without links; none where it does not
        exist."""
        with (
            suppress(FileNotFoundError),
            self._above(name, inside=True) as (folder, _),
            os.scandir(folder) as entries,
        ):
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        return []

    def files(self, name: str | Path = "") -> list[str]:
        """The regular files below a folder by their relative paths, sorted; none where it does not
        exist. Links and what lies behind them are left out."""
        return sorted(path for path, mode in self._walk(name) if stat.S_ISREG(mode))

    def check(self, name: str | Path = "") -> None:
        """Raise DamagedFile where anything below a folder is a link, a pipe or a device."""
        for path, mode in self._walk(name):
            if not stat.S_ISREG(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
                where = self._path(name) / path
                raise DamagedFile(f"{where} is {kind}, which is refused; remove it")

    def remove(self, name: str | Path) -> None:
        """Delete a file or a folder with all that is in it, if there is one. Of a link the link
        goes. The name is one that the engine made, never one from a file or a pattern."""
        with suppress(FileNotFoundError), self._above(name) as (folder, last):
            mode = os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                shutil.rmtree(last, ignore_errors=True, dir_fd=folder)
            else:
                os.unlink(last, dir_fd=folder)

    def rename(self, old: str | Path, new: str | Path) -> Path:
        """Give a file or folder another name below this folder, on disk once this returns.

        Raises OSError as os.rename.
        """
        with self._above(old) as (before, last), self._above(new, make=True) as (folder, to):
            os.rename(last, to, src_dir_fd=before, dst_dir_fd=folder)
            os.fsync(folder)
        return self._path(new)

    def _path(self, name: str | Path) -> Path:
        return self._folder.joinpath(*self._parts(name))

    def _parts(self, name: str | Path) -> Sequence[str]:
        """The names that lead from the folder that may be a link to what is meant."""
        path = Path(name)
        if isinstance(name, Path) and name.is_relative_to(self.path):
            path = name.relative_to(self.path)
        elif isinstance(name, Path) or path.is_absolute() or "\0" in name:
            raise DamagedFile(f"{str(name)!r} is not in {self.path}, and so it is refused")
        if ".." in path.parts:
            raise DamagedFile(f"{str(name)!r} leads out of {self.path}, and so it is refused")
        return [*self._inner, *path.parts]

    @contextmanager
    def _above(
        self, name: str | Path, *, make: bool = False, inside: bool = False
    ) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that something is in, and its name there.

        make: the folders on the way, if they are missing. inside: of what is a folder, its own
        descriptor.
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
        """Everything below a folder but folders: relative paths, and modes as stat gives them."""
        with suppress(FileNotFoundError), self._above(name, inside=True) as (folder, _):
            for above, folders, files, here in os.fwalk(".", dir_fd=folder):
                for each in (*folders, *files):
                    with suppress(FileNotFoundError):
                        mode = os.stat(each, dir_fd=here, follow_symlinks=False).st_mode
                        if not stat.S_ISDIR(mode):
                            yield Path(above, each).as_posix(), mode

    def _link(self, name: str | Path) -> Exception:
        return DamagedFile(
            f"{self._path(name)} leads through a link, which is not followed; remove the link and "
            "run the same command again"
        )


def move(old: Path, new: Path) -> None:
    """Rename between two folders that the user named; links at these names are not followed."""
    os.replace(old, new)
    sync(new.parent)


def _is_link(name: str, folder: int) -> bool:
    with suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False
