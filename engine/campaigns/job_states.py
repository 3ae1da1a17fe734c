"""How each job of a campaign stands, from its events and its marker.

A job writes its marker, `done/JOB`, when it is done; Snakemake needs it as the job's output.
Everything else is an event (`events`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from engine.campaigns import events
from engine.campaigns.events import (
    LONGEST,
    Begun,
    Ended,
    Placed,
    Progress,
    Queued,
    append_event,
    read_events,
)
from engine.campaigns.parts import remove_part
from engine.campaigns.plan import PREPARE, REPORT, TRAIN, Plan, stage_of
from engine.campaigns.plan_folder import PlanFolder
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile

DONE, LOGS, LOG = "done", "logs", ".log"  # next to a plan
RUNNING, WAITING, FINISHED, FAILED = "running", "waiting", "done", "failed"
SIGNALLED = 128  # a shell's exit code for a program ended by a signal is this plus its number
END = 4096  # bytes at the end of a log in which to find its last line
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


class Failure(NamedTuple):
    """How a job failed, and its own error message, if any."""

    how: str
    words: str = ""

    def text(self, joint: str) -> str:
        """Both parts, separated by `joint`."""
        return joint.join(filter(None, self))


class JobState(NamedTuple):
    """How a job stands.

    state: RUNNING, WAITING, FINISHED or FAILED. attempts: all, in order. new: the number of them
    since the job was queued last. progress: since then. end: what is known of its end; a
    job may end before it begins.
    """

    state: str = WAITING
    attempts: tuple[Attempt, ...] = ()
    new: int = 0
    progress: Progress | None = None
    end: Ended = Ended(at=0)

    @property
    def current(self) -> tuple[Attempt, ...]:
        """The attempts since the job was queued last."""
        return self.attempts[len(self.attempts) - self.new :]

    @property
    def failure(self) -> Failure | None:
        """How it failed, or None if it did not."""
        if self.state != FAILED:
            return None
        code = self.end.code
        how = self.end.how or ("failed" if code is None else _how(code))
        return Failure(how, "" if code == os.EX_TEMPFAIL else self.end.error)


def is_done(place: PlanFolder, job: str) -> bool:
    """Whether a job of the plan in the folder `place` is done."""
    return place.root.has(f"{DONE}/{job}")


def set_done(place: PlanFolder, job: str) -> None:
    """Mark a job as done; the last action of the job."""
    place.root.write(f"{DONE}/{job}", b"")


def read_jobs(plan: Plan) -> dict[str, JobState]:
    """How each job of a plan stands."""
    return {job: read_job(plan.place, job) for job in plan.jobs}


class JobReader:
    """Reads how a plan's jobs stand, again and again, each time only those that changed.

    A campaign of thousands of jobs is watched for days, often on a disk that others share: a read
    lists two folders, and opens no file of a job to which nothing happened.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._states: dict[str, tuple[object, JobState]] = {}  # with the stamp before it was read

    def read(self) -> dict[str, JobState]:
        """As `read_jobs`."""
        place = self.plan.place
        stamps, done = events.stamps(place), {*place.root.names(DONE)}
        for job in self.plan.jobs:
            stamp = stamps.get(job), job in done
            if job not in self._states or self._states[job][0] != stamp:
                self._states[job] = stamp, read_job(place, job)
        return {job: state for job, (_, state) in self._states.items()}


def read_job(place: PlanFolder, job: str) -> JobState:
    """How a job stands. Raises DamagedFile if its file of events is a link or not a file."""
    at, now = 0.0, JobState()
    for event in read_events(place, job):
        now = _after(now, event, job, at)
        at = event.at
    return now._replace(state=FINISHED) if is_done(place, job) else now


def _after(before: JobState, event: object, job: str, at: float) -> JobState:
    """How a job stands after an event; `at` is the time of the event before."""
    match event:
        case Queued():
            return JobState(attempts=_killed(before.attempts, at))
        case Begun():
            attempt = Attempt(
                job, stage_of(job), event.at, None, "",
                scheduler=event.scheduler, queued_as=event.queued_as,
            )  # fmt: skip
            attempts = (*_killed(before.attempts, at), attempt)
            return JobState(RUNNING, attempts, before.new + 1, before.progress)
        case Progress():
            return before._replace(progress=event)
        case Placed() if before.attempts:
            return before._replace(
                attempts=_with_last(before.attempts, device=event.device, processes=event.processes)
            )
        case Ended():
            return _ended(before, event)
    return before


def _ended(before: JobState, event: Ended) -> JobState:
    """How a job stands after somebody told how it ended. What was told before stays known."""
    end = Ended(
        at=event.at,
        error=before.end.error or event.error,
        code=before.end.code if event.code is None else event.code,
        how=event.how or before.end.how,
    )
    says_nothing = end == Ended(at=end.at)
    now = before._replace(state=before.state if says_nothing else FAILED, end=end)
    if not before.current:
        return now
    error = end.error or (now.failure.how if now.failure else "")
    ended = before.attempts[-1].ended or event.at
    return now._replace(attempts=_with_last(before.attempts, ended=ended, error=error))


def _killed(attempts: tuple[Attempt, ...], at: float) -> tuple[Attempt, ...]:
    """The attempts once a next one is known: the last, if it has no end, was killed at `at`."""
    if attempts and attempts[-1].ended is None:
        return _with_last(attempts, ended=at, error="was killed")
    return attempts


def _with_last(attempts: tuple[Attempt, ...], **values: Any) -> tuple[Attempt, ...]:
    return (*attempts[:-1], replace(attempts[-1], **values))


def _how(code: int) -> str:
    if code == os.EX_TEMPFAIL:
        return "was ended by a signal during training; a new run resumes from its last checkpoint"
    if code == 0:
        return "ended without a result (exit code 0)"
    with contextlib.suppress(ValueError):
        name = signal.Signals(code - SIGNALLED).name
        hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
        return f"was killed ({name}){hint}"
    return f"failed (exit code {code})"


def attempts(states: Mapping[str, JobState]) -> list[Attempt]:
    """All attempts at jobs, sorted by start."""
    tried = (attempt for state in states.values() for attempt in state.attempts)
    return sorted(tried, key=lambda attempt: (attempt.started, attempt.job))


def advance(place: PlanFolder, job: str, done: int, total: int, doing: str = "") -> None:
    """Record a job's progress in the plan's folder `place`, for the progress bar."""
    if os.environ.get("RANK", "0") == "0":  # a file of events has one writer
        with contextlib.suppress(OSError):  # a full disk: the work may not need it
            append_event(place, job, Progress(done=done, total=total, doing=doing))


def steps(plan: Plan, states: Mapping[str, JobState]) -> int:
    """Steps of the plan's jobs in the progress bar.

    The preparation has one for every evaluated dataset and the model; the others have one for every
    cell that they make and, except trainings, one more. Jobs that were done before have no
    progress and do not count.
    """

    def of(job: str) -> int:
        if job == PREPARE:
            return len(plan.recipe.dataset.evaluated_sets) + 1
        return len(plan.cells_of(job)) + (stage_of(job) != TRAIN)

    return sum(
        of(job) for job, state in states.items() if state.progress or state.state != FINISHED
    )


def steps_done(states: Iterable[JobState]) -> int:
    """Steps that jobs have done."""
    return sum(state.progress.done for state in states if state.progress)


def doing(states: Iterable[JobState]) -> str:
    """The current work of the job that reported last, or empty."""
    told = [state.progress for state in states if state.progress]
    return max(told, key=lambda progress: progress.at).doing if told else ""


def text(numbers: Counter[str], doing: str) -> str:
    """Numbers of jobs by state, as `3 running, 5 waiting, 2 done; preparing few`."""
    names = [name for name in (RUNNING, WAITING, FINISHED, FAILED) if numbers[name]]
    parts = [f"{numbers[name]} {name}" for name in names]
    return "; ".join(filter(None, [", ".join(parts), doing]))


def begin(plan: Plan) -> None:
    """Queue the jobs that are not done.

    If all jobs were done, an artefact must be missing or damaged, so all jobs run again. They reuse
    the artefacts that remain in the store.

    Raises DamagedFile if anything next to the plan is a link, because Snakemake and the jobs'
    shells write there and follow links.
    """
    place = plan.place
    place.root.check()
    Root(place.runs).below(place.plans / ".snakemake").check()
    if is_done(place, REPORT) or not place.store.is_dir():
        forget(place)
    for job in plan.jobs:
        if not is_done(place, job):
            remove_part(place, job)
            append_event(place, job, Queued())


def forget(place: PlanFolder) -> None:
    """Mark all jobs of a plan as not done, so that the next run repeats them."""
    place.root.remove(DONE)


def failures(plan: Plan) -> Iterator[tuple[str, str]]:
    """Each failed job with a message: how it failed, its error, and its log's path."""
    for job, state in read_jobs(plan).items():
        if failed := state.failure:
            log = plan.place.path / LOGS / f"{job}{LOG}"
            has_log = state.current or state.end.code is not None  # and not only of an earlier run
            its_log = f"\n  log: {log}" if has_log and plan.place.root.has(log) else ""
            words = failed.words or (_last_line(plan.place, job) if has_log else "")
            text = failed._replace(words=words).text("\n  last message: ")
            yield job, f"{job} {text}{its_log}"


def _last_line(place: PlanFolder, job: str) -> str:
    """The last non-empty line of a job's log, cut to `LONGEST`; empty without one."""
    name = f"{LOGS}/{job}{LOG}"
    with contextlib.suppress(OSError, DamagedFile), place.root.open(name) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - END))
        lines = file.read().decode(errors="replace").split("\n")
        return next(filter(None, map(str.strip, reversed(lines))), "")[-LONGEST:]
    return ""
