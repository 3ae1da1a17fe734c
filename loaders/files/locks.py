"""Locks between processes: flock, or a lease if the file system has no flock (some NFS and Lustre).

A lease is a file that its holder touches regularly. A waiting process takes the lease when it has
seen no change for a while by its own clock, so clocks of machines need not agree. In a rare race,
two processes may hold a lease that a dead process left; their work must tolerate that.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.files.durable import DamagedFile, open_regular
from loaders.files.root import Root

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)

NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
BEAT_S = 10  # between touches of a lease
_LEASE = ".lease"
LOOK_S = 0.5  # between checks of a lock that another process holds
MOST = 1000  # maximum bytes of a lock file
LAPSE_S = 60  # a holder that does not touch its lease for this long loses it


@contextmanager
def held(path: Path, on_wait: Callable[[], object], root: Root | None = None) -> Iterator[None]:
    """Holds the lock file `path`, which names its holder, until the block or the process ends.

    on_wait: called before waiting for another process; it may raise. With a lease it is called only
    after about `LAPSE_S`. root: a folder below which links to the file are not followed.
    """
    from filelock import FileLock, SoftFileLease  # imported here: most commands need no lock

    root = root or Root(path.parent)
    root.make(path.parent)
    root.at(path)
    try:
        lock: BaseFileLock = FileLock(path, poll_interval=LOOK_S, fallback_to_soft=False)
        while not _acquired(lock, 0):
            if _has_flock(path):  # otherwise a process only looked (`is_held`)
                on_wait()
                lock.acquire()
                break
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        lock = SoftFileLease(
            path.with_name(f"{path.name}{_LEASE}"),
            lease_duration=LAPSE_S,
            heartbeat_interval=BEAT_S,
            poll_interval=LOOK_S,
            on_compromise=lambda _: log.warning(
                "lost the lease %s: this process was suspended for too long", path
            ),
        )
        if not _acquired(lock, 1.1 * LAPSE_S):
            on_wait()
            lock.acquire()
    try:
        with root.open(path, "wb") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        root.remove(path)  # processes that have it open notice and open a new one
        lock.release()


@contextmanager
def shared(
    path: Path, on_wait: Callable[[], object], root: Root, *, alone: bool = False
) -> Iterator[None]:
    """Holds the lock file `path` with other processes, or alone, until the block or process ends.

    on_wait, root: as of `held`. The file stays. On a file system without flock, `alone` raises
    OSError, and nothing is held otherwise.
    """
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with root.open(path, "ab") as file:
        try:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, kind)
        except OSError as error:
            if alone or error.errno not in NO_FLOCK:
                raise OSError(error.errno, error.strerror, str(path)) from error
        yield


def holder(path: Path) -> str:
    """Returns the lock's holder as `process N on HOST`, or `unknown`."""
    with suppress(OSError, ValueError):
        text = Root(path.parent).read(path, MOST).decode()
        return text if re.fullmatch(r"process [0-9]+ on [\w.-]+", text) else "unknown"
    return "unknown"


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock file."""
    with suppress(OSError):
        lease = path.with_name(f"{path.name}{_LEASE}")
        if time.time() - lease.stat().st_mtime < LAPSE_S:
            return True
    return _has_flock(path)


def _has_flock(path: Path) -> bool:
    """Whether a process has locked the file for itself. Looking shares the lock for a moment."""
    try:
        with open_regular(path) as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, DamagedFile):  # no such file, or no flock
        return False
    return False


def _acquired(lock: BaseFileLock, most_s: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=most_s)
    except Timeout:
        return False
    return True
