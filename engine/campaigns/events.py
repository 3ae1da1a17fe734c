"""What happened to a campaign's jobs: an append-only file of events for each job.

The file of a job, `events/JOB.jsonl` next to the plan, has one writer at a time: `rib campaign`
until the job begins and after it ended, the job in between. Each event is one line and one `write`.
A kill may cut off the last line. Readers skip such a line, and the next writer ends it. Imports no
torch.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import msgspec

from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.schedulers import SCHEDULERS
from engine.errors import OtherRankError
from engine.machine import entry

FOLDER = "events"  # next to a plan
LONGEST = 300  # characters of an error
MOST = 64 << 20  # bytes of the events of a job
_END = ".jsonl"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened. at: when, in seconds since 1970."""

    at: float = msgspec.field(default_factory=time.time)


class Queued(Event, frozen=True, tag="queued"):
    """The job waits to begin. Its earlier attempts belong to the past."""


class Begun(Event, frozen=True, tag="begun"):
    """An attempt at the job began.

    node, process: host name and process ID. scheduler, queued_as: the scheduler that queued the job
    (a key of `SCHEDULERS`) and its job ID there, or empty.
    """

    node: str
    process: int
    scheduler: str = ""
    queued_as: str = ""


class Placed(Event, frozen=True, tag="placed"):
    """The device of an attempt, and its number of processes, one per GPU."""

    device: str
    processes: int


class Progress(Event, frozen=True, tag="progress"):
    """Steps done of an attempt, of how many, and a short description of its current work."""

    done: int
    total: int
    doing: str = ""


class Ended(Event, frozen=True, tag="ended"):
    """An attempt ended. Job, program around it and campaign each write what they know.

    error: the job's own message. code: the exit code of a job that failed, or 0 if it left no
    result. how: how the job ended, of jobs that could not write it.
    """

    error: str = ""
    code: int | None = None
    how: str = ""


class Sealed(Event, frozen=True, tag="sealed"):
    """A report was written. files: SHA-256 of its files, by name."""

    files: dict[str, str]


_LINES = msgspec.json.Decoder(Queued | Begun | Placed | Progress | Ended | Sealed)


def append_event(place: PlanFolder, job: str, event: Event) -> None:
    """Append an event to the file of a job. Raises DamagedFile if the file is a link; OSError."""
    with place.root.open(_name(job), "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        is_cut = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        os.write(file.fileno(), b"\n" * is_cut + msgspec.json.encode(event) + b"\n")


def read_events(place: PlanFolder, job: str) -> Iterator[Event]:
    """The events of a job, in order. Raises DamagedFile for a link, what is not a file, and more
    than `MOST` bytes."""
    try:
        lines = place.root.read(_name(job), MOST).split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            yield _LINES.decode(line)


@contextlib.contextmanager
def recorded(place: PlanFolder, job: str, *, is_part: bool = False) -> Iterator[None]:
    """Record begin and end of an attempt, with its error.

    Only the first rank does, and other ranks that fail with an error of their own. is_part: whether
    this process does a part of an attempt that another process records: only its error is recorded.
    """
    is_first, error = os.environ.get("RANK", "0") == "0", ""
    tells = is_first and not is_part
    if tells:
        scheduler, number = _queue()
        begun = Begun(
            node=socket.gethostname(), process=os.getpid(), scheduler=scheduler, queued_as=number
        )
        append_event(place, job, begun)
    try:
        yield
    except BaseException as problem:
        is_own = not isinstance(problem, OtherRankError)
        is_own &= is_first or not isinstance(problem, KeyboardInterrupt)
        error = entry.words(problem)[:LONGEST] if is_own else ""
        raise
    finally:
        if error or tells:
            with contextlib.suppress(OSError):  # a full disk: the job's own error counts
                append_event(place, job, Ended(error=error))


def _queue() -> tuple[str, str]:
    """The scheduler that started this process, and its job ID there; both empty if none did."""
    for name, scheduler in SCHEDULERS.items():
        if number := os.environ.get(scheduler.job_variable):
            return name, number
    return "", ""


def stamps(place: PlanFolder) -> dict[str, object]:
    """By job, what differs once there are more events of the job. Opens no file of events."""
    return {name.removesuffix(_END): stamp for name, stamp in place.root.stamps(FOLDER).items()}


def _name(job: str) -> str:
    return f"{FOLDER}/{job}{_END}"
