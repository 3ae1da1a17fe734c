"""A campaign's status, read from the files next to its plan, so any process can show it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from engine.campaigns import attempts, job_states
from engine.campaigns.holdings import Begun
from engine.campaigns.plan import read_plan
from engine.campaigns.progress import FAILED, RUNNING
from loaders.files import locks
from loaders.files.typed_json import DamagedFile

FINISHED, AT_WORK, STOPPED, DAMAGED = "finished", "running", "stopped", "damaged"


@dataclass(frozen=True)
class Status:
    """The status of a campaign.

    Attributes:
        name, plan: the campaign's folder and the plan's ID.
        state: FINISHED, AT_WORK, STOPPED or DAMAGED.
        since: time of its end, or of the latest job's start if it has not finished, in seconds
            since 1970.
        jobs: number of jobs by state (`job_states`).
        cells: numbers of cells done, and of all cells.
        probe: number of the seed probe's cells among all cells.
        seconds: predicted time left; None if it is not running, or before the first step.
        doing: current work of the job that reported last.
        error: error of the latest failed attempt at a job that is not done.
    """

    name: str
    plan: str
    state: str
    since: float
    jobs: Counter[str]
    cells: tuple[int, int]
    probe: int = 0
    seconds: float | None = None
    doing: str = ""
    error: str = ""


def of(begun: Begun, now: float, *, is_latest: bool = True) -> Status:
    """The status of a campaign. now: seconds since 1970.

    is_latest: whether its plan is the latest of its folder. Only the latest plan can be running.
    """
    place = begun.place
    try:
        plan = read_plan(place)
        tried = attempts.read(place)
    except (OSError, DamagedFile) as error:
        since = place.path.stat().st_mtime
        return Status(begun.name, place.name, DAMAGED, since, Counter(), (0, 0), error=str(error))
    states = job_states.progress(plan)
    jobs = job_states.counts(place, plan.jobs)
    of_column = len(plan.rows) * plan.seeds
    columns = [column.job for column in plan.columns]
    probe = of_column * sum(column.is_probe for column in plan.columns)
    done = sum(
        of_column if job_states.is_done(place, job) else min(of_column, states[job].done)
        for job in columns
        if job in states or job_states.is_done(place, job)
    )
    failed = [a for a in tried if a.error and not job_states.is_done(place, a.job)]
    error = f"{failed[-1].job}: {failed[-1].error}" if failed else begun.fault
    cells = (done, of_column * len(columns))
    if begun.record:
        since = place.record.stat().st_mtime
        return Status(begun.name, place.name, FINISHED, since, jobs, cells, probe)
    started = tried[-1].started if tried else place.path.stat().st_mtime
    if not is_latest or not locks.is_held(place.lock):
        jobs[FAILED] += jobs.pop(RUNNING, 0)
        return Status(begun.name, place.name, STOPPED, started, jobs, cells, probe, error=error)
    return Status(
        begun.name,
        place.name,
        AT_WORK,
        started,
        jobs,
        cells,
        probe,
        left_s(job_states.steps(plan), states, tried, now),
        max(states.values(), key=lambda state: state.at).doing if states else "",
        error,
    )


def left_s(
    steps: int,
    states: dict[str, job_states.JobProgress],
    tried: list[attempts.Attempt],
    now: float,
) -> float | None:
    """Predicted seconds until a campaign of `steps` steps ends, or None before the first step.

    Assumes the speed of its jobs so far, not counting time in which no job ran.
    """
    done = sum(state.done for state in states.values())
    spans = sorted((a.started, a.ended or now) for a in tried)
    worked, until = 0.0, 0.0
    for start, end in spans:
        worked += max(0.0, end - max(start, until))
        until = max(until, end)
    return worked / done * (steps - done) if done and worked else None
