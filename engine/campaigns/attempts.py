"""Attempts at a campaign's jobs: when and where each ran and how it ended, one file per attempt.

A job that failed or was interrupted has several attempts. A failed attempt stores its error. An
attempt without an end was killed. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.schedulers import SCHEDULERS
from engine.errors import FirstRankError
from engine.machine import entry
from loaders.files import typed_json

FOLDER = "attempts"
LONGEST = 300  # characters of an error
KILLED = "it has no end: it was killed, or is still running"


@dataclass(frozen=True)
class Attempt:
    """An attempt at a job.

    started, ended: seconds since 1970; ended is None if the process was killed or is running.
    device: name of the device. processes: their number, one per GPU. error: why it failed, or
    empty. scheduler, queued_as: the scheduler that queued it (a key of `SCHEDULERS`) and its job
    ID there, or empty. campaign: its name, in reports of several campaigns.
    """

    job: str
    stage: str
    started: float
    ended: float | None
    device: str
    processes: int = 1
    error: str = ""
    scheduler: str = ""
    queued_as: str = ""
    campaign: str = ""

    @property
    def hours(self) -> float:
        """Its duration, or 0 without an end."""
        return 0.0 if self.ended is None else (self.ended - self.started) / 3600

    @property
    def failure(self) -> str:
        """Why it did not finish its job, or empty if it did."""
        return KILLED if self.ended is None else self.error


@contextlib.contextmanager
def recorded(
    place: PlanFolder, job: str, stage: str, started: float
) -> Iterator[Callable[[str, int], None]]:
    """Record an attempt in a file of the plan's folder.

    Yields a function that records the device's name and the number of processes. Only the first
    rank writes a file, and other ranks that fail with an error of their own.
    """
    rank = int(os.environ.get("RANK", "0"))
    name = f"{job}-{started * 1000:.0f}{f'-{rank}' if rank else ''}.json"
    scheduler, number = _queue()
    attempt = Attempt(job, stage, started, None, "", scheduler=scheduler, queued_as=number)

    def note(device: str, processes: int) -> None:
        nonlocal attempt
        attempt = replace(attempt, device=device, processes=processes)
        if rank == 0:
            _write(place, name, attempt)

    if rank == 0:
        _write(place, name, attempt)
    error = ""
    try:
        yield note
    except BaseException as problem:
        is_own = rank == 0 or not isinstance(problem, FirstRankError | KeyboardInterrupt)
        error = entry.words(problem)[:LONGEST] if is_own else ""
        raise
    finally:
        if rank == 0 or error:
            _write(place, name, replace(attempt, ended=time.time(), error=error))


def read(place: PlanFolder) -> list[Attempt]:
    """The attempts at a plan's jobs, sorted by start. Raises DamagedFile for an altered file."""
    root, attempts = place.root, []
    for name in root.files(FOLDER):
        if name.endswith(".json"):
            file = place.path / FOLDER / name
            values = typed_json.read_unaltered(file, "delete it", root)
            attempts.append(typed_json.convert(values, Attempt, file, "delete it"))
    return sorted(attempts, key=lambda attempt: (attempt.started, attempt.job))


def _queue() -> tuple[str, str]:
    """The scheduler that started this process, and its job ID there; both empty if none did."""
    for name, scheduler in SCHEDULERS.items():
        if number := os.environ.get(scheduler.job_variable):
            return name, number
    return "", ""


def _write(place: PlanFolder, name: str, attempt: Attempt) -> None:
    place.root.write(f"{FOLDER}/{name}", typed_json.with_digest(asdict(attempt)))
