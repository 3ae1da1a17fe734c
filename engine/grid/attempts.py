"""When each job of a campaign ran, on what, and how it ended: a file an attempt, beside the plan.

A job runs several times where it failed or was interrupted. Imports no torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.machine.files import write_atomic
from loaders import schema

FOLDER = "attempts"
LONGEST = 300  # characters of an error
KILLED = "it left no end: it was killed, or is at work"


@dataclass(frozen=True)
class Attempt:
    """An attempt at a job. started, ended: seconds since 1970; a process that was killed leaves no
    end. device: its name; processes: how many worked, one a GPU. error: why it failed, or empty.
    campaign: only in a report of several.
    """

    job: str
    stage: str
    started: float
    ended: float | None
    device: str
    processes: int = 1
    error: str = ""
    campaign: str = ""

    @property
    def hours(self) -> float:
        """How long it took; 0 where it left no end."""
        return 0.0 if self.ended is None else (self.ended - self.started) / 3600

    @property
    def failure(self) -> str:
        """Why it did not finish its job; empty where it did."""
        return KILLED if self.ended is None else self.error


@contextlib.contextmanager
def recorded(place: Path, attempt: Attempt) -> Iterator[None]:
    """Keep a file of an attempt, which starts now, in the folder of the plan."""
    path = place / FOLDER / f"{attempt.job}-{attempt.started * 1000:.0f}.json"
    _write(path, attempt)
    error = ""
    try:
        yield
    except BaseException as problem:
        error = (str(problem) or type(problem).__name__)[:LONGEST]
        raise
    finally:
        _write(path, replace(attempt, ended=time.time(), error=error))


def read(place: Path) -> list[Attempt]:
    """The attempts at the jobs of a plan, by their start; campaigns of older versions have none.

    Raises DamagedFile.
    """
    files = (place / FOLDER).glob("*.json")
    attempts = [
        schema.convert(schema.read_unaltered(file, "delete it"), Attempt, file, "delete it")
        for file in files
    ]
    return sorted(attempts, key=lambda attempt: (attempt.started, attempt.job))


def _write(path: Path, attempt: Attempt) -> None:
    write_atomic(path, schema.with_digest(asdict(attempt)))
