"""Downloads a file from the first address that provides it, verifies it, and resumes after a stop.

Archives reject clients that open many connections or retry at once. Each host therefore gets at
most `CONNECTIONS` at a time, and a host that refuses is asked again after long waits.

Bytes are collected in `NAME.part`. The file gets its name once it is complete and its size and
checksum are verified.
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

from loaders.files.durable import file_hash, sync
from loaders.files.root import Root

_CHUNK = 1 << 20  # bytes
TRIES = 5  # consecutive attempts without a new byte before giving up an address
WAIT_S = 1.0  # before the second attempt, then doubled
REFUSED_WAIT_S = 15.0  # the same if a server refuses; it may ask for a longer wait
LONGEST_WAIT_S = 900.0
CONNECTIONS = 2  # maximum per host at a time
TIMEOUT_S = 30.0  # without any data
SLOWEST = 1000  # bytes/s averaged over `SLOW_S`; slower addresses are given up
SLOW_S = 60.0
_RANGE = re.compile(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", re.ASCII)
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_PASSING = (408, 425)  # temporary statuses below 500
_REFUSING = (403, 429, 503)  # a server with too many requests; archives answer 403
_hosts: dict[str, threading.BoundedSemaphore] = {}


class Unavailable(Exception):
    """The address does not provide the file, and retrying does not help."""


class Refused(OSError):
    """The server refuses for now. wait_s: seconds that it asks to wait, or 0."""

    def __init__(self, text: str, wait_s: float) -> None:
        super().__init__(text)
        self.wait_s = wait_s


MAY_PASS = (OSError, HTTPException)  # retrying may succeed


class Mismatch(ValueError):
    """A file does not have the expected size or checksum."""


class Stopped(Exception):
    """The user stopped the downloads."""


@dataclass(frozen=True)
class Remote:
    """A file and its addresses. size: bytes, 0 if unknown. algorithm: sha256 or md5."""

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
    """Downloads the file to `folder/NAME` unless it exists.

    After an error, the received bytes stay in `NAME.part`, and the next call resumes from there.
    Raises ValueError if no address provides the file or the disk is full, and Stopped after
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
            "again to resume, or download it by other means and give its folder by --from"
        )
    sync(part)
    Root(folder).rename(part, path)


def ask(address: str) -> tuple[int | None, str]:
    """Asks whether an address provides a file now.

    Returns its size in bytes (0 if unknown, None if there is no file) and a description.
    """
    try:
        with _connection(address, threading.Event()):
            response = open_at(address)
            assert response is not None  # None is only for start > 0
            response.stream.close()
    except (Unavailable, *MAY_PASS) as error:
        return None, str(error)
    if response.total is None:
        return 0, "reachable, of unknown size"
    return response.total, f"reachable, {response.total:,} bytes"


def check(path: Path, remote: Remote) -> None:
    """Raises Mismatch if a file does not have the expected size or checksum."""
    size = path.stat().st_size
    if remote.size and size != remote.size:
        raise Mismatch(f"{size:,} bytes, not {remote.size:,}")
    if (actual := file_hash(path, remote.algorithm)) != remote.checksum:
        raise Mismatch(f"its {remote.algorithm} is {actual}, not {remote.checksum}")


class Response(NamedTuple):
    """The bytes of a file from `start`. total: size of the whole file, or None if unknown."""

    stream: HTTPResponse
    start: int
    total: int | None


def open_at(address: str, start: int = 0) -> Response | None:
    """Opens the file at an http(s) address from byte `start`.

    Returns the whole file if the server ignores `start`, or None if there are no more bytes. Raises
    Unavailable, OSError or HTTPException.
    """
    headers = {"User-Agent": "rib-engine"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        _check_scheme(address)
        request = urllib.request.Request(address, headers=headers)
        stream = _OPENER.open(request, timeout=TIMEOUT_S)
    except (ValueError, InvalidURL) as error:
        raise Unavailable(f"invalid address ({error})") from error
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
        raise Unavailable("the server sends a web page instead of the file")
    if stream.status != 206:
        length = stream.headers.get("Content-Length", "")
        return Response(stream, 0, int(length) if _NUMBER.fullmatch(length) else None)
    sent = _RANGE.fullmatch(stream.headers.get("Content-Range", ""))
    if sent is None or int(sent[1]) != start:
        stream.close()
        raise Unavailable("the server sends another part of the file than requested")
    return Response(stream, start, None if sent[2] == "*" else int(sent[2]))


def _retry_after(header: str) -> float:
    """Returns the seconds that a server asks to wait, from a number or a date; 0 for neither."""
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
    """Holds one of the host's `CONNECTIONS` once it is free. Raises Stopped or Unavailable."""
    try:
        host = urllib.parse.urlsplit(address).netloc
    except ValueError as error:
        raise Unavailable(f"invalid address ({error})") from error
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
        _check_scheme(newurl)  # urllib would also follow to ftp
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def _collect(address: str, remote: Remote, part: Path, progress: DownloadProgress) -> None:
    """Collects the whole file in `part` and checks it.

    A part that fails the check is removed. If it was there before, it may be of another version, so
    the download starts again. Raises Unavailable, Mismatch, ValueError or Stopped.
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
                    "another folder by --to. The received bytes are kept, and the same command "
                    "resumes from there"
                ) from error
            # Count only new bytes: a server may restart each time and stop at the same byte.
            failed = 0 if _size(part) > most else failed + 1
            most = max(most, _size(part))
            if failed >= TRIES:
                raise Unavailable(f"{failed} attempts failed, the last with: {error}") from error
            if progress.stop.wait(_wait(error, max(failed - 1, 0))):
                raise Stopped from error


def _wait(error: Exception, waits: int) -> float:
    """Returns the seconds to wait after `waits` waits in a row.

    Raises Unavailable if the server asks for more than `LONGEST_WAIT_S`.
    """
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
    if response is None:  # no more bytes
        return
    stream, done, total = response
    with stream:
        if remote.size and total not in (None, remote.size):
            raise Unavailable(f"the file has {total:,} bytes, not {remote.size:,}")
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
                        raise Unavailable(f"it sends only {rate:.0f} bytes/s")
                    began, before = time.monotonic(), done
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended at byte {done:,} of {total:,}")


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
