"""A campaign's status, read from the events of its jobs, so any process can show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from engine.campaigns import job_states
from engine.campaigns.holdings import StartedCampaign
from engine.campaigns.job_states import FAILED, RUNNING, JobState
from engine.campaigns.job_states import FINISHED as FINISHED_JOB
from engine.campaigns.plan import REPORT, read_plan
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
        replicates: number of the seed replicates' cells among all cells.
        seconds: predicted time left; None if it is not running, or before the first step.
        doing: current work of the job that reported last.
        error: how the job that failed last failed.
    """

    name: str
    plan: str
    state: str
    since: float
    jobs: Counter[str]
    cells: tuple[int, int]
    replicates: int = 0
    seconds: float | None = None
    doing: str = ""
    error: str = ""


def read_status(begun: StartedCampaign, now: float, *, is_latest: bool = True) -> Status:
    """The status of a campaign. now: seconds since 1970.

    is_latest: whether its plan is the latest of its folder. Only the latest plan can be running.
    """
    place = begun.place
    try:
        plan = read_plan(place)
        states = job_states.read_jobs(plan)
    except (OSError, DamagedFile) as error:
        since = place.path.stat().st_mtime
        return Status(begun.name, place.name, DAMAGED, since, Counter(), (0, 0), error=str(error))
    of_column = len(plan.rows) * plan.seeds
    replicates = of_column * sum(column.is_replicate for column in plan.columns)
    done = 0
    for job, state in states.items():
        of_job = len(plan.cells_of(job))
        is_done = state.state == FINISHED_JOB
        done += of_job if is_done else min(of_job, job_states.steps_done([state]))
    jobs = Counter(state.state for state in states.values())
    cells = (done, of_column * len(plan.columns))
    # A campaign that was finished and lacks an artefact makes its report again.
    if begun.record and states[REPORT].state == FINISHED_JOB:
        since = place.record.stat().st_mtime
        return Status(begun.name, place.name, FINISHED, since, jobs, cells, replicates)
    tried = job_states.attempts(states)
    started = tried[-1].started if tried else place.path.stat().st_mtime
    errors = {
        state.end.at: f"{job}: {failed.text(': ')}"
        for job, state in states.items()
        if (failed := state.failure)
    }
    error = errors[max(errors)] if errors else begun.fault
    if not is_latest or not locks.is_held(place.lock):
        jobs[FAILED] += jobs.pop(RUNNING, 0)
        return Status(
            begun.name, place.name, STOPPED, started, jobs, cells, replicates, error=error
        )
    left, doing = left_s(job_states.steps(plan, states), states.values(), now), job_states.doing
    of_work = left, doing(states.values()), error
    return Status(begun.name, place.name, AT_WORK, started, jobs, cells, replicates, *of_work)


def left_s(steps: int, states: Iterable[JobState], now: float) -> float | None:
    """Predicted seconds until a campaign of `steps` steps ends, or None before the first step.

    Assumes the speed of its jobs so far, not counting time in which no job ran.
    """
    states = list(states)
    done = job_states.steps_done(states)
    tried = [attempt for state in states for attempt in state.current]
    worked, until = 0.0, 0.0
    for start, end in sorted((a.started, a.ended or now) for a in tried):
        worked += max(0.0, end - max(start, until))
        until = max(until, end)
    return worked / done * (steps - done) if done and worked else None
