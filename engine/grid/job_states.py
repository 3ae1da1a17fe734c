"""How the jobs of a campaign are doing, and why one failed.

All of it is read from files next to the plan. A job writes how far it is, and its marker as its
last act; the shell around it writes the exit code of one that failed; `attempts` has who tried it
when.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from engine.grid import attempts
from engine.grid.campaign import REPORT, Plan
from engine.grid.plan_folder import PlanFolder
from engine.grid.schedulers import SCHEDULERS
from loaders import schema
from loaders.schema import DamagedFile

DONE, LOGS, LOG, EXIT, PROGRESS = "done", "logs", ".log", ".exit", "progress"  # next to a plan
RUNNING, WAITING, FINISHED, FAILED = "running", "waiting", "done", "failed"
MOST = 100  # bytes of a job's exit code
SIGNALLED = 128  # a shell's exit code for a program that a signal ended: this and its number
END = 4096  # bytes of a log that are looked at for its last line


def is_done(place: PlanFolder, job: str) -> bool:
    """Whether a job of the plan in the folder `place` is done."""
    return place.root.has(f"{DONE}/{job}")


def set_done(place: PlanFolder, job: str) -> None:
    """Mark a job as done; the last action of the job."""
    place.root.write(f"{DONE}/{job}", b"")


def exit_code(place: PlanFolder, job: str) -> int | None:
    """The exit code of a job that failed, as far as it has one; 0 where it left no result."""
    with contextlib.suppress(OSError, ValueError):
        return int(place.root.read(f"{LOGS}/{job}{EXIT}", MOST))
    return None


def state(place: PlanFolder, job: str) -> str:
    """Whether a job runs, waits, is done or has failed. It has a log from its start."""
    if is_done(place, job):
        return FINISHED
    if not place.root.has(f"{LOGS}/{job}{LOG}"):
        return WAITING
    return RUNNING if exit_code(place, job) is None else FAILED


def counts(place: PlanFolder, jobs: Sequence[str]) -> Counter[str]:
    """How many jobs of the plan in the folder `place` are running, waiting, done or failed."""
    return Counter(state(place, job) for job in jobs)


class JobProgress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a job is, in steps, when it wrote this (seconds since 1970), and what it does."""

    done: int
    total: int
    at: float
    doing: str


def advance(place: PlanFolder, name: str, done: int, total: int, doing: str = "") -> None:
    """Write how far a job of the plan in a folder is, and what it does, for the progress bar."""
    progress = JobProgress(done, total, time.time(), doing)
    place.root.write(f"{PROGRESS}/{name}.json", msgspec.json.encode(progress))


def progress(plan: Plan) -> dict[str, JobProgress]:
    """How far each job of a plan is that was begun."""
    begun: dict[str, JobProgress] = {}
    for job in plan.jobs:
        # A damaged file moves the bar only, and the job writes it anew.
        with contextlib.suppress(DamagedFile, FileNotFoundError):
            file = plan.place.path / PROGRESS / f"{job}.json"
            begun[job] = schema.read(file, JobProgress, "delete it", plan.place.root)
    return begun


def begin(plan: Plan) -> None:
    """Forget how jobs ended in earlier runs. If all of them were done, something is gone or
    damaged, so they run again; they find the rest in the store.

    Raises DamagedFile if anything next to the plan is a link: jobs write there from their shell,
    and Snakemake into its own folder, which follow links.
    """
    place = plan.place
    beside = place.root
    beside.check()
    place.snakemake_root.check()
    if is_done(place, REPORT) or not place.store.is_dir():
        forget(place)
    for job in plan.jobs:
        of_job = [EXIT] if is_done(place, job) else [EXIT, LOG]
        for suffix in of_job:
            # The job's own error names a folder in its place.
            if beside.has(name := f"{LOGS}/{job}{suffix}"):
                beside.remove(name)


def forget(place: PlanFolder) -> None:
    """Let the next run visit all jobs of a plan again."""
    place.root.remove(DONE)


class Failure(NamedTuple):
    """How a job failed, and its own words, if it left any."""

    how: str
    words: str = ""

    def text(self, joint: str) -> str:
        """Both, with a joint between them."""
        return joint.join(filter(None, self))


def failures(plan: Plan) -> Iterator[tuple[str, str]]:
    """Each job that failed, and some lines for people: what happened, its words, its log."""
    for job in plan.jobs:
        log = plan.place.path / LOGS / f"{job}{LOG}"
        if not is_done(plan.place, job) and (failed := failure(plan.place, job)):
            its_log = f"\n  its log: {log}" if plan.place.root.has(log) else ""
            text = failed.text("\n  last words: ")
            yield job, f"{job} {text}{its_log}"


def failure(place: PlanFolder, job: str) -> Failure | None:
    """How a job's last attempt failed; None where it has not. Of an attempt of several ranks, the
    words are those of one that says why."""
    of_job = [attempt for attempt in attempts.read(place) if attempt.job == job]
    last = max(of_job, key=lambda a: (a.started, bool(a.error)), default=None)
    code = exit_code(place, job)
    words = last.error if last else ""
    if code == os.EX_TEMPFAIL:
        return Failure(
            "was ended by a signal during training, and resumes from its last checkpoint"
        )
    if last and last.ended is None and last.scheduler in SCHEDULERS:
        scheduler = SCHEDULERS[last.scheduler]
        if end := scheduler.end_of(last.queued_as):
            return Failure(f"was ended by {scheduler.title}: {end}")
        if code is None:
            return Failure(f"was killed, and {scheduler.title} does not say by what")
    if code is None:
        return Failure("failed", words) if words else None
    if code > SIGNALLED:
        name = signal.Signals(code - SIGNALLED).name
        hint = ", as the kernel does where memory runs out" if name == "SIGKILL" else ""
        return Failure(f"was killed ({name}){hint}")
    words = words or _last_line(place, job)
    if code == 0:
        return Failure("ended without its result (exit code 0)", words)
    return Failure(f"failed (exit code {code})", words)


def _last_line(place: PlanFolder, job: str) -> str:
    """The last line of a job's log, as far as a line is short; empty where there is none."""
    name = f"{LOGS}/{job}{LOG}"
    with contextlib.suppress(OSError, DamagedFile), place.root.open(name) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - END))
        lines = file.read().decode(errors="replace").split("\n")
        return next(filter(None, map(str.strip, reversed(lines))), "")[-attempts.LONGEST :]
    return ""
