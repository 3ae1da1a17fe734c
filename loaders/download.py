"""A file from the first of its addresses that gives it, checked, and resumed after a stop.

Archives refuse clients that open many connections or ask again at once, so a host gets
`CONNECTIONS` at a time, and one that refuses is asked again after long waits.

The bytes are collected in `NAME.part`. The file has its name only once it is whole and has the size
and checksum that it should have.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO, Any, NamedTuple

from loaders.files import file_hash, sync
from loaders.root import Root

_CHUNK = 1 << 20  # bytes
TRIES = 5  # in a row that bring no byte, after which an address is given up
WAIT_S = 1.0  # before the second try, then doubled
REFUSED_WAIT_S = 15.0  # the same where a server refuses, which may ask for more
LONGEST_WAIT_S = 900.0
CONNECTIONS = 2  # at a time, of a host
TIMEOUT_S = 30.0  # without a byte
SLOWEST = 1000  # bytes a second, on average of `SLOW_S`; an address that is slower is given up
SLOW_S = 60.0
_RANGE = re.compile(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", re.ASCII)
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_PASSING = (408, 425)  # statuses below 500 that may not come again
_REFUSING = (403, 429, 503)  # also those of a server with many requests; archives answer 403
_hosts: dict[str, threading.BoundedSemaphore] = {}


class Unavailable(Exception):
    """The address does not give the file, and another attempt is of no use."""


class Refused(OSError):
    """The server refuses now. wait_s: how long it asks to wait, 0 where it does not say."""

    def __init__(self, text: str, wait_s: float) -> None:
        super().__init__(text)
        self.wait_s = wait_s


MAY_PASS = (OSError, HTTPException)  # another attempt may succeed


class Mismatch(ValueError):
    """A file has another size or checksum than it should have."""


class Stopped(Exception):
    """The user stops the downloads."""


@dataclass(frozen=True)
class Remote:
    """A file and where it is. size: bytes, 0 where not known. algorithm: sha256 or md5."""

    name: str
    addresses: tuple[str, ...]
    size: int
    algorithm: str
    checksum: str


@dataclass
class DownloadProgress:
    """A download's progress callback and stop event. seen: called with the number of bytes."""

    seen: Callable[[int], None] = lambda done: None
    stop: threading.Event = field(default_factory=threading.Event)


def fetch(remote: Remote, folder: Path, progress: DownloadProgress | None = None) -> None:
    """Download the file to `folder/NAME` if it is not there.

    After an error, the received bytes stay in `NAME.part`, and the next call resumes from there.
    Raises ValueError where no address gives the file or the disk is full, Stopped after
    `progress.stop`.
    """
    path, part = folder / remote.name, folder / f"{remote.name}.part"
    if path.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    for address in remote.addresses:
        try:
            _collect(address, remote, part, progress or DownloadProgress())
            break
        except (Unavailable, Mismatch) as error:
            failures.append(f"{address}: {error}")
    else:
        raise ValueError(
            f"{remote.name} could not be downloaded ({'; '.join(failures)}); run the same command "
            "again to go on, or download it by other means and give its folder by --from"
        )
    sync(part)
    Root(folder).rename(part, path)


def ask(address: str) -> tuple[int | None, str]:
    """Whether an address gives a file now: its bytes (0 where the server does not say, None where
    it gives none), and that in words."""
    try:
        with _connection(address, threading.Event()):
            response = open_at(address)
            assert response is not None  # from the start there is a file
            response.stream.close()
    except (Unavailable, *MAY_PASS) as error:
        return None, str(error)
    if response.total is None:
        return 0, "reachable, of unknown size"
    return response.total, f"reachable, {response.total:,} bytes"


def check(path: Path, remote: Remote) -> None:
    """Raise Mismatch where a file has another size or checksum than it should have."""
    size = path.stat().st_size
    if remote.size and size != remote.size:
        raise Mismatch(f"{size:,} bytes, not {remote.size:,}")
    if (actual := file_hash(path, remote.algorithm)) != remote.checksum:
        raise Mismatch(f"its {remote.algorithm} is {actual}, not {remote.checksum}")


class Response(NamedTuple):
    """The bytes of a file from `start` on. total: of the whole file, None where it is not said."""

    stream: HTTPResponse
    start: int
    total: int | None


def open_at(address: str, start: int = 0) -> Response | None:
    """The file at an http(s) address from byte `start` on, or whole where the server refuses that;
    None where it has no more bytes.

    Raises Unavailable, OSError or HTTPException.
    """
    headers = {"User-Agent": "rib-engine"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        _check_scheme(address)
        request = urllib.request.Request(address, headers=headers)
        stream = _OPENER.open(request, timeout=TIMEOUT_S)
    except (ValueError, InvalidURL) as error:
        raise Unavailable(f"it is not an address ({error})") from error
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the file ends at the range's start
            return None
        text = f"the server answers {error.code} {error.reason}"
        if error.code in _REFUSING:
            raise Refused(text, _retry_after(error.headers.get("Retry-After", ""))) from error
        kind = OSError if error.code >= 500 or error.code in _PASSING else Unavailable
        raise kind(text) from error
    if stream.headers.get_content_type() == "text/html":
        stream.close()
        raise Unavailable("a web page comes in place of the file")
    if stream.status != 206:
        length = stream.headers.get("Content-Length", "")
        return Response(stream, 0, int(length) if _NUMBER.fullmatch(length) else None)
    sent = _RANGE.fullmatch(stream.headers.get("Content-Range", ""))
    if sent is None or int(sent[1]) != start:
        stream.close()
        raise Unavailable("the server sends bytes of another place in the file")
    return Response(stream, start, None if sent[2] == "*" else int(sent[2]))


def _retry_after(header: str) -> float:
    """The seconds that a server asks to wait, by a number or a date; 0 where it says neither."""
    if _NUMBER.fullmatch(header):
        return float(header)
    try:
        at = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


@contextlib.contextmanager
def _connection(address: str, stop: threading.Event) -> Iterator[None]:
    """One of the host's `CONNECTIONS`, once it is free. Raises Stopped and Unavailable."""
    try:
        host = urllib.parse.urlsplit(address).netloc
    except ValueError as error:
        raise Unavailable(f"it is not an address ({error})") from error
    free = _hosts.setdefault(host, threading.BoundedSemaphore(CONNECTIONS))
    while not free.acquire(timeout=0.1):
        if stop.is_set():
            raise Stopped
    try:
        yield
    finally:
        free.release()


def _check_scheme(address: str) -> None:
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise Unavailable("it is not an http or https address")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()
        _check_scheme(newurl)  # urllib follows to ftp, too
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def _collect(address: str, remote: Remote, part: Path, progress: DownloadProgress) -> None:
    """Collect the whole file in `part` and check it.

    A part that does not fit is removed, and one that was there before is read again from its start:
    it may be of another version. Raises Unavailable, Mismatch, ValueError or Stopped.
    """
    failed, most = 0, _size(part)
    resumed = most > 0
    while True:
        try:
            with _connection(address, progress.stop):
                _attempt(address, remote, part, progress)
            return check(part, remote)
        except Mismatch:
            Root(part.parent).remove(part)
            if not resumed:
                raise
            resumed, failed, most = False, 0, 0
        except MAY_PASS as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(
                    f"{part.parent} has no room for {remote.name} ({error}); make room, or give "
                    "another folder by --to. The received bytes are kept: the same command resumes "
                    "from there"
                ) from error
            # A server that always sends the file from its start and stops at the same byte fails.
            failed = 0 if _size(part) > most else failed + 1
            most = max(most, _size(part))
            if failed >= TRIES:
                raise Unavailable(f"{failed} attempts failed, the last by: {error}") from error
            if progress.stop.wait(_wait(error, max(failed - 1, 0))):
                raise Stopped from error


def _wait(error: Exception, waits: int) -> float:
    """Seconds before the next try, after `waits` in a row. Raises Unavailable after too many."""
    if not isinstance(error, Refused):
        return WAIT_S * 2**waits
    if error.wait_s > LONGEST_WAIT_S:
        raise Unavailable(f"{error}, and asks to wait {error.wait_s / 60:.0f} minutes") from error
    return max(error.wait_s, min(REFUSED_WAIT_S * 2**waits, LONGEST_WAIT_S))


def _attempt(address: str, remote: Remote, part: Path, progress: DownloadProgress) -> None:
    start = _size(part)
    if start and start == remote.size:
        return
    response = open_at(address, start)
    if response is None:  # nothing is left of the file
        return
    stream, done, total = response
    with stream:
        if remote.size and total not in (None, remote.size):
            raise Unavailable(f"its file has {total:,} bytes, not {remote.size:,}")
        with Root(part.parent).open(part, "ab" if done else "wb") as file:
            began, before = time.monotonic(), done
            while chunk := stream.read1(_CHUNK):
                done += len(chunk)
                if remote.size and done > remote.size:
                    raise Mismatch(f"more than {remote.size:,} bytes")
                file.write(chunk)
                progress.seen(done)
                if progress.stop.is_set():
                    raise Stopped
                if (seconds := time.monotonic() - began) >= SLOW_S:
                    if (rate := (done - before) / seconds) < SLOWEST:
                        raise Unavailable(f"it sends {rate:.0f} bytes a second")
                    began, before = time.monotonic(), done
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended at byte {done:,} of {total:,}")


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
