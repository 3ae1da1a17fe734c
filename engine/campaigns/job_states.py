"""States of a campaign's jobs, and why a job failed.

They come from files next to the plan. A job writes its progress, and its marker when it is done. If
it fails, the shell around it writes its exit code. `attempts` holds the attempts at each job.
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

from engine.campaigns import attempts
from engine.campaigns.plan import REPORT, Plan
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.schedulers import SCHEDULERS
from loaders.files import typed_json
from loaders.files.typed_json import DamagedFile

DONE, LOGS, LOG, EXIT, PROGRESS = "done", "logs", ".log", ".exit", "progress"  # next to a plan
RUNNING, WAITING, FINISHED, FAILED = "running", "waiting", "done", "failed"
MOST = 100  # bytes to read of a file with an exit code
SIGNALLED = 128  # a shell's exit code for a program ended by a signal is this plus its number
END = 4096  # bytes at the end of a log in which to find its last line


def is_done(place: PlanFolder, job: str) -> bool:
    """Whether a job of the plan in the folder `place` is done."""
    return place.root.has(f"{DONE}/{job}")


def set_done(place: PlanFolder, job: str) -> None:
    """Mark a job as done; the last action of the job."""
    place.root.write(f"{DONE}/{job}", b"")


def exit_code(place: PlanFolder, job: str) -> int | None:
    """The exit code of a failed job, or None. 0 if it ended without a result."""
    with contextlib.suppress(OSError, ValueError):
        return int(place.root.read(f"{LOGS}/{job}{EXIT}", MOST))
    return None


def state(place: PlanFolder, job: str) -> str:
    """The state of a job: RUNNING, WAITING, FINISHED or FAILED. A started job has a log."""
    if is_done(place, job):
        return FINISHED
    if not place.root.has(f"{LOGS}/{job}{LOG}"):
        return WAITING
    return RUNNING if exit_code(place, job) is None else FAILED


def counts(place: PlanFolder, jobs: Sequence[str]) -> Counter[str]:
    """The number of jobs of the plan in the folder `place`, by state."""
    return Counter(state(place, job) for job in jobs)


class JobProgress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job's progress. done, total: steps. at: time of writing, in seconds since 1970.

    doing: a short description of its current work.
    """

    done: int
    total: int
    at: float
    doing: str


def advance(place: PlanFolder, name: str, done: int, total: int, doing: str = "") -> None:
    """Write a job's progress into the plan's folder `place`, for the progress bar."""
    progress = JobProgress(done, total, time.time(), doing)
    place.root.write(f"{PROGRESS}/{name}.json", msgspec.json.encode(progress))


def progress(plan: Plan) -> dict[str, JobProgress]:
    """The progress of each job of a plan that has started."""
    begun: dict[str, JobProgress] = {}
    for job in plan.jobs:
        # A damaged file affects only the bar, and the job soon overwrites it.
        with contextlib.suppress(DamagedFile, FileNotFoundError):
            file = plan.place.path / PROGRESS / f"{job}.json"
            begun[job] = typed_json.read(file, JobProgress, "delete it", plan.place.root)
    return begun


def steps(plan: Plan) -> int:
    """Steps of the plan's jobs. Jobs whose results another campaign had have no progress and do not
    count."""
    begun = progress(plan)
    jobs = (job for job in plan.jobs if job in begun or not is_done(plan.place, job))
    return sum(map(plan.steps, jobs))


def begin(plan: Plan) -> None:
    """Remove the exit codes of earlier runs, and the logs of jobs that are not done.

    If all jobs were done, an artefact must be missing or damaged, so all jobs run again. They reuse
    the artefacts that remain in the store.

    Raises DamagedFile if anything next to the plan is a link, because Snakemake and the jobs'
    shells write there and follow links.
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
            # If it is a folder, the job itself raises an error that names it.
            if beside.has(name := f"{LOGS}/{job}{suffix}"):
                beside.remove(name)


def forget(place: PlanFolder) -> None:
    """Mark all jobs of a plan as not done, so that the next run repeats them."""
    place.root.remove(DONE)


class Failure(NamedTuple):
    """How a job failed, and its own error message, if any."""

    how: str
    words: str = ""

    def text(self, joint: str) -> str:
        """Both parts, separated by `joint`."""
        return joint.join(filter(None, self))


def failures(plan: Plan) -> Iterator[tuple[str, str]]:
    """Each failed job with a message: how it failed, its error, and its log's path."""
    for job in plan.jobs:
        log = plan.place.path / LOGS / f"{job}{LOG}"
        if not is_done(plan.place, job) and (failed := failure(plan.place, job)):
            its_log = f"\n  log: {log}" if plan.place.root.has(log) else ""
            text = failed.text("\n  last message: ")
            yield job, f"{job} {text}{its_log}"


def failure(place: PlanFolder, job: str) -> Failure | None:
    """How a job's last attempt failed, or None if it did not.

    If several ranks failed, the message is that of a rank that recorded an error.
    """
    of_job = [attempt for attempt in attempts.read(place) if attempt.job == job]
    last = max(of_job, key=lambda a: (a.started, bool(a.error)), default=None)
    code = exit_code(place, job)
    words = last.error if last else ""
    if code == os.EX_TEMPFAIL:
        return Failure(
            "was ended by a signal during training; a new run resumes from its last checkpoint"
        )
    if last and last.ended is None and last.scheduler in SCHEDULERS:
        scheduler = SCHEDULERS[last.scheduler]
        if end := scheduler.end_of(last.queued_as):
            return Failure(f"was ended by {scheduler.title}: {end}")
        if code is None:
            return Failure(f"was killed; {scheduler.title} gives no reason")
    if code is None:
        return Failure("failed", words) if words else None
    if code > SIGNALLED:
        name = signal.Signals(code - SIGNALLED).name
        hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
        return Failure(f"was killed ({name}){hint}")
    words = words or _last_line(place, job)
    if code == 0:
        return Failure("ended without a result (exit code 0)", words)
    return Failure(f"failed (exit code {code})", words)


def _last_line(place: PlanFolder, job: str) -> str:
    """The last non-empty line of a job's log, cut to `attempts.LONGEST`; empty without one."""
    name = f"{LOGS}/{job}{LOG}"
    with contextlib.suppress(OSError, DamagedFile), place.root.open(name) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - END))
        lines = file.read().decode(errors="replace").split("\n")
        return next(filter(None, map(str.strip, reversed(lines))), "")[-attempts.LONGEST :]
    return ""
