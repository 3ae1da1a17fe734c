"""A file from the first of its addresses that gives it, checked, and resumed after a stop.

The bytes are collected in `NAME.part`. The file has its name only once it is whole and has the size
and checksum that it should have.
"""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from loaders import responses
from loaders.files import file_hash, sync
from loaders.responses import Response, Unavailable

_CHUNK = 1 << 20  # bytes


class DownloadError(ValueError):
    """A file could not be downloaded; the message names its addresses and a remedy."""


class Mismatch(ValueError):
    """A file has another size or checksum than it should have."""


class Stopped(Exception):
    """The user stops the downloads."""


@dataclass(frozen=True)
class Remote:
    """A file and where it is. size: bytes, 0 where not known. checksum: empty where not known."""

    name: str
    addresses: tuple[str, ...]
    size: int = 0
    algorithm: str = "sha256"  # or md5
    checksum: str = ""


@dataclass(frozen=True)
class Patience:
    """When an address is given up.

    tries: attempts in a row that bring no byte. wait_s: pause before the second, then doubled.
    rate: bytes a second below which the next address is tried first. window_s: time over which the
    rate is measured.
    """

    tries: int = 5
    wait_s: float = 1.0
    rate: float = 100_000.0
    window_s: float = 30.0


@dataclass
class Progress:
    """What a download tells and listens to. seen: called with the bytes there are and the total."""

    seen: Callable[[int, int | None], None] = lambda done, total: None
    stop: threading.Event = field(default_factory=threading.Event)


class _Slow(Exception):
    """The address gives the file too slowly."""


def fetch(
    remote: Remote, folder: Path, progress: Progress | None = None, patience: Patience | None = None
) -> str:
    """Download the file to `folder/NAME` if it is not there.

    Returns the address that gave its last bytes; empty where it was there. What has arrived before
    an error stays in `NAME.part`, and the next call goes on from there. Raises DownloadError where
    no address gives the file or the disk is full, Stopped after `progress.stop`.
    """
    progress, patience = progress or Progress(), patience or Patience()
    path = folder / remote.name
    if path.is_file():
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    part = _Part(folder, remote)
    # A slow address comes again after the rest, and is then taken as it is.
    queue = deque((address, len(remote.addresses) == 1) for address in remote.addresses)
    failures: list[str] = []
    while queue:
        address, patient = queue.popleft()
        resumed = part.size > 0
        try:
            _read(address, part, progress, patience, patient)
            part.check()
        except _Slow:
            queue.append((address, True))
        except Unavailable as error:
            failures.append(f"{address}: {error}")
        except Mismatch as error:
            failures.append(f"{address}: {error}")
            part.remove()
            if resumed:  # its beginning may be of another version
                queue.appendleft((address, patient))
        else:
            part.finish(path)
            return address
    tried = "; ".join(failures) or "it has no address"
    raise DownloadError(
        f"{remote.name} could not be downloaded ({tried}); run the same command again to go on, "
        f"or download it by other means and give its folder by --from"
    )


def check(path: Path, remote: Remote) -> None:
    """Raise Mismatch where a file has another size or checksum than it should have."""
    size = path.stat().st_size
    if remote.size and size != remote.size:
        raise Mismatch(f"{size:,} bytes, not {remote.size:,}")
    if remote.checksum and (actual := file_hash(path, remote.algorithm)) != remote.checksum:
        raise Mismatch(f"its {remote.algorithm} is {actual}, not {remote.checksum}")


class _Part:
    """The bytes of a file that have arrived, and what the server said of the whole."""

    def __init__(self, folder: Path, remote: Remote) -> None:
        self.remote = remote
        self.path = folder / f"{remote.name}.part"
        self._notes = folder / f"{remote.name}.part.json"

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def notes(self) -> tuple[int | None, str]:
        """The whole file's size and version, as the server said when the first byte came."""
        try:
            values = json.loads(self._notes.read_text())
            return values["total"], values["version"]
        except (OSError, ValueError, KeyError):
            return None, ""

    def begin(self, response: Response) -> None:
        values = {"total": response.total, "version": response.version}
        self._notes.write_text(json.dumps(values))

    def check(self) -> None:
        check(self.path, self.remote)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        sync(self.path)
        self.path.replace(path)
        sync(path.parent)
        self._notes.unlink(missing_ok=True)


def _read(address: str, part: _Part, progress: Progress, patience: Patience, patient: bool) -> None:
    """Collect the whole file in `part`. Raises Unavailable, _Slow, DownloadError or Stopped."""
    failed, most = 0, part.size
    while True:
        try:
            return _attempt(address, part, progress, patience, patient)
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(part, str(error)) from error
            # A server that always sends the file from its start and stops at the same byte fails.
            failed = 0 if part.size > most else failed + 1
            most = max(most, part.size)
            if failed >= patience.tries:
                raise Unavailable(f"{failed} attempts failed, the last by: {error}") from error
            if progress.stop.wait(patience.wait_s * 2 ** max(failed - 1, 0)):
                raise Stopped from error


def _attempt(
    address: str, part: _Part, progress: Progress, patience: Patience, patient: bool
) -> None:
    start = part.size
    total, version = part.notes()
    if start and not part.remote.checksum and not version:
        start = 0  # nothing would show that the two halves are of one file
    if start and (whole := part.remote.size or total):
        if start == whole:
            return
        start = start if start < whole else 0
    response = responses.open_at(address, start, "" if part.remote.checksum else version)
    with response.stream as stream:
        total, start = response.total, response.start
        if part.remote.size and total not in (None, part.remote.size):
            raise Unavailable(f"its file has {total:,} bytes, not {part.remote.size:,}")
        missing = (total or part.remote.size) - start
        if missing > (free := shutil.disk_usage(part.path.parent).free):
            raise _no_room(part, f"{missing:,} bytes are needed, {free:,} are free")
        if not start:
            part.begin(response)
        done, since, seen = start, time.monotonic(), start
        with part.path.open("r+b" if start else "wb") as file:
            file.seek(start)
            while chunk := stream.read1(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress.seen(done, total)
                if progress.stop.is_set():
                    raise Stopped
                passed = time.monotonic() - since
                if passed >= patience.window_s:
                    if not patient and (done - seen) / passed < patience.rate:
                        raise _Slow
                    since, seen = time.monotonic(), done
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended at byte {done:,} of {total:,}")


def _no_room(part: _Part, why: str) -> DownloadError:
    return DownloadError(
        f"{part.path.parent} has no room for {part.remote.name} ({why}); make room, or give "
        "another folder by --to. What has arrived is safe: the same command goes on from there"
    )
