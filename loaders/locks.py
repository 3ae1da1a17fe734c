"""A lock among processes: flock, or a lease where a file system has no flock (some NFS and Lustre).

A lease is a file that its holder touches again and again. It is free once nobody has seen a change
of it for a while by a clock that only runs forward, so clocks of machines need not agree. In a rare
race two processes may hold a lease that a dead one left; what they make must bear that.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

log = logging.getLogger(__name__)

NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
BEAT_S = 10  # between two touches of a lease
LOOK_S = 1  # between two looks at somebody's lease
LAPSE_S = 60  # without a change: a holder that is stopped for longer loses the lease


@contextmanager
def held(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    """Hold the lock file `path`, which names its holder, until the block ends or the process dies.

    on_wait: called where another process holds it, before this one waits; it may raise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = _flocked(path, on_wait)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        path.unlink(missing_ok=True)
        file = None
    with _leased(_lease_of(path), on_wait) if file is None else _written(path, file):
        yield


def holder(path: Path) -> str:
    """`process N on HOST`, which holds the lock file."""
    for file in (_lease_of(path), path):
        with suppress(OSError):
            return " ".join(file.read_text().split()[:4]) or "unknown"
    return "unknown"


def _lease_of(path: Path) -> Path:
    """Another file, since opening a file to lock it makes it."""
    return path.with_name(f"{path.name}.lease")


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _flocked(path: Path, on_wait: Callable[[], object]) -> TextIO:
    """The open file, locked, which the kernel unlocks when this process ends."""
    while True:
        file = path.open("a+")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file  # and not a file that its last holder has removed
        except BaseException:
            file.close()
            raise
        file.close()


@contextmanager
def _written(path: Path, file: TextIO) -> Iterator[None]:
    with file:
        file.truncate(0)
        file.write(_holder())
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _leased(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    lease = f"{_holder()} {uuid.uuid4().hex}"
    _take(path, lease, on_wait)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            state = _state(path)
            if state is None or state[0] != lease:
                return log.warning("%s was lost: this process stood still for too long", path)
            os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        state = _state(path)
        if state and state[0] == lease:
            path.unlink(missing_ok=True)


def _take(path: Path, lease: str, on_wait: Callable[[], object]) -> None:
    """Make the lease file, once there is none, or nobody keeps it alive."""
    seen, since = None, 0.0
    waits = False
    while True:
        with suppress(FileExistsError), path.open("x") as file:
            file.write(lease)
            return
        state = _state(path)
        if state != seen:
            if seen is not None and state is not None and not waits:
                on_wait()  # it is alive
                waits = True
            seen, since = state, time.monotonic()
        elif time.monotonic() - since > LAPSE_S:
            path.unlink(missing_ok=True)
            continue
        time.sleep(LOOK_S)


def _state(path: Path) -> tuple[str, int] | None:
    """Content and time stamp of a lease. Opening it asks a file server, not a client's memory."""
    with suppress(FileNotFoundError), path.open() as file:
        return file.read(), os.fstat(file.fileno()).st_mtime_ns
    return None
