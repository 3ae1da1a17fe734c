"""Downloads a file with curl from the first address that provides it, and verifies it.

Archives reject clients that open many connections or retry at once. Each host therefore gets at
most `CONNECTIONS` at a time, and a host that refuses is asked again after long waits. curl's own
`--retry` would discard the received bytes, so each attempt is a new curl that resumes.

Bytes are collected in `NAME.part`. The file gets its name once it is complete and its size and
checksum are verified.
"""

from __future__ import annotations

import contextlib
import email
import errno
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

from loaders.files.durable import file_hash, sync
from loaders.files.root import Root

_CHUNK = 1 << 20  # bytes
TRIES = 5  # consecutive attempts of less than `SLOWEST * SLOW_S` bytes before giving up an address
WAIT_S = 1.0  # before the second attempt, then doubled
REFUSED_WAIT_S = 15.0  # the same if a server refuses; it may ask for a longer wait
LONGEST_WAIT_S = 900.0
CONNECTIONS = 2  # maximum per host at a time
SLOWEST = 1000  # bytes/s averaged over `SLOW_S`; curl ends slower transfers
SLOW_S = 60
_PASSING = (408, 425)  # temporary statuses below 500
_REFUSING = (403, 429, 503)  # a server with too many requests; archives answer 403
# curl's exit codes: https://curl.se/docs/manpage.html
_HTTP_ERROR, _NO_RANGES, _TOO_LARGE = 22, 33, 63
_LASTING = (1, 3, 47)  # another protocol, no URL, too many redirects
_CURL = [
    "curl", "--disable", "--globoff", "--silent", "--show-error", "--fail", "--user-agent",
    "rib-engine", "--location", "--max-redirs", "10", "--proto", "=http,https", "--proto-redir",
    "=http,https", "--connect-timeout", "30", "--speed-limit", str(SLOWEST),
]  # fmt: skip
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_hosts: dict[str, threading.BoundedSemaphore] = {}


class Unavailable(Exception):
    """The address does not provide the file, and retrying does not help."""


class Refused(OSError):
    """The server refuses for now. wait_s: seconds that it asks to wait, or 0."""

    def __init__(self, text: str, wait_s: float) -> None:
        super().__init__(text)
        self.wait_s = wait_s


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
    Raises ValueError if no address provides the file, the disk is full or curl is missing, and
    Stopped after `progress.stop`.
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
            length = _curl(address, lambda chunk: False).get("Content-Length", "")
    except (Unavailable, OSError) as error:
        return None, str(error)
    if not _NUMBER.fullmatch(length):
        return 0, "reachable, of unknown size"
    return int(length), f"reachable, {int(length):,} bytes"


def check(path: Path, remote: Remote) -> None:
    """Raises Mismatch if a file does not have the expected size or checksum."""
    size = path.stat().st_size
    if remote.size and size != remote.size:
        raise Mismatch(f"{size:,} bytes, not {remote.size:,}")
    if (actual := file_hash(path, remote.algorithm)) != remote.checksum:
        raise Mismatch(f"its {remote.algorithm} is {actual}, not {remote.checksum}")


class _NoRanges(Exception):
    """The server sends only whole files."""


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
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(
                    f"{part.parent} has no room for {remote.name} ({error}); make room, or give "
                    "another folder by --to. The received bytes are kept, and the same command "
                    "resumes from there"
                ) from error
            # Count only new bytes: a server may restart each time and stop at the same byte.
            failed = 0 if _size(part) > most + SLOWEST * SLOW_S else failed + 1
            most = max(most, _size(part))
            if failed >= TRIES:
                raise Unavailable(f"{failed} attempts failed, the last with: {error}") from error
            if progress.stop.wait(_wait(error, max(failed - 1, 0))):
                raise Stopped from error


def _wait(error: OSError, waits: int) -> float:
    """Returns the seconds to wait after `waits` waits in a row.

    Raises Unavailable if the server asks for more than `LONGEST_WAIT_S`.
    """
    if not isinstance(error, Refused):
        return WAIT_S * 2**waits
    if error.wait_s > LONGEST_WAIT_S:
        raise Unavailable(f"{error}, and asks to wait {error.wait_s / 60:.0f} minutes") from error
    return max(error.wait_s, min(REFUSED_WAIT_S * 2**waits, LONGEST_WAIT_S))


def _attempt(address: str, remote: Remote, part: Path, progress: DownloadProgress) -> None:
    start = done = _size(part)
    if start and start == remote.size:
        return

    def take(chunk: bytes) -> bool:
        nonlocal done
        done += len(chunk)
        if remote.size and done > remote.size:
            raise Mismatch(f"more than {remote.size:,} bytes")
        file.write(chunk)
        progress.seen(done)
        if progress.stop.is_set():
            raise Stopped
        return True

    try:
        with Root(part.parent).open(part, "ab") as file:
            _curl(address, take, start, remote.size)
    except _NoRanges:
        Root(part.parent).remove(part)
        _attempt(address, remote, part, progress)


def _curl(address: str, take: Callable[[bytes], bool], start: int = 0, largest: int = 0) -> Message:
    """Passes the file's bytes from `start` to `take` until `take` returns False.

    largest: refuse a file that announces more bytes, unless it is 0. Returns the headers of the
    last response. Raises Unavailable, OSError or _NoRanges, and ValueError without curl.
    """
    with tempfile.NamedTemporaryFile() as headers:
        words = ["--continue-at", str(start), "--speed-time", str(SLOW_S)]
        words += ["--max-filesize", str(largest)] if largest else []
        command = [*_CURL, *words, "--dump-header", headers.name, "--", address]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            raise ValueError("curl was not found; install it: apt-get install curl") from error
        text, code = "", 0
        with process:
            assert process.stdout is not None and process.stderr is not None
            body = process.stdout.fileno()
            try:
                chunk = os.read(body, _CHUNK)  # curl writes the headers before
                status, response = _last_response(headers.read())
                if status < 300 and response.get_content_type() == "text/html":
                    raise Unavailable("the server sends a web page instead of the file")
                while chunk and take(chunk):
                    chunk = os.read(body, _CHUNK)
                if not chunk:
                    text, code = process.stderr.read().decode(errors="replace"), process.wait()
            finally:
                process.kill()
    if code == _NO_RANGES and start:
        raise _NoRanges
    if code == _HTTP_ERROR:
        text, wait = f"the server answers {status}", response.get("Retry-After", "")
        if status in _REFUSING:
            raise Refused(text, float(wait) if _NUMBER.fullmatch(wait) else 0.0)
        raise (OSError if status >= 500 or status in _PASSING else Unavailable)(text)
    if code == _TOO_LARGE:
        raise Unavailable(f"more than {largest:,} bytes")
    if code:
        raise (Unavailable if code in _LASTING else OSError)(text.strip() or f"curl: ({code})")
    return response


def _last_response(headers: bytes) -> tuple[int, Message]:
    """Returns the status and headers of the last of several responses; status 0 for none."""
    text = re.split(r"^HTTP/", headers.decode("latin-1").replace("\r", ""), flags=re.MULTILINE)[-1]
    line, _, rest = text.partition("\n")
    status = re.match(r"[\d.]+ (\d{3})", line)
    return int(status[1]) if status else 0, email.message_from_string(rest)


@contextlib.contextmanager
def _connection(address: str, stop: threading.Event) -> Iterator[None]:
    """Holds one of the host's `CONNECTIONS` once it is free. Raises Stopped or Unavailable."""
    if not address.startswith(("http://", "https://")):
        raise Unavailable("it is not an http or https address")
    host = address.split("/")[2]
    free = _hosts.setdefault(host, threading.BoundedSemaphore(CONNECTIONS))
    while not free.acquire(timeout=0.1):
        if stop.is_set():
            raise Stopped
    try:
        yield
    finally:
        free.release()


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
