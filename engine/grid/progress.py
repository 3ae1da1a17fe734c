"""How far the jobs of campaigns are: each writes it to a file, and a bar shows it to people."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.grid import failures, markers
from engine.grid.campaign import Plan
from engine.grid.job_graph import Job
from engine.machine import pace
from engine.machine.files import write_atomic
from loaders import schema
from loaders.schema import DamagedFile

POLL_S = 0.5
LOG_EVERY_S = 30  # between two states of the bar where nobody watches it move
RUNNING, WAITING, DONE, FAILED = "running", "waiting", "done", "failed"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a job is, in steps, when it wrote this (seconds since 1970), and what it does.

    rate: images a second that it trained on or evaluated since it wrote the state before this.
    """

    done: int
    total: int
    at: float
    doing: str
    rate: float = 0.0


def advance(path: Path, name: str, done: int, total: int, doing: str = "") -> None:
    """Write how far a job of the plan at `path` is, and what it does, for the progress bar."""
    state = State(done, total, time.time(), doing, pace.PROCESS.read())
    write_atomic(path.parent / "progress" / f"{name}.json", msgspec.json.encode(state))


def counts(place: Path, jobs: Sequence[Job]) -> Counter[str]:
    """How many jobs of the plan in the folder `place` are running, waiting, done or failed.

    A job has a marker when it is done, and a log from its start, whose last line tells a failure.
    """
    return Counter(_state(place, job.name) for job in jobs)


def text(states: Counter[str], doing: str, rate: float = 0.0) -> str:
    """`3 running, 5 waiting, 2 done; 840 images/s; evaluating 96 models on few`."""
    names = [name for name in (RUNNING, WAITING, DONE, FAILED) if states[name]]
    parts = [f"{states[name]} {name}" for name in names]
    images = f"{rate:,.0f} images/s" if rate else ""
    return "; ".join(filter(None, [", ".join(parts), images, doing]))


def show(process: subprocess.Popen, grids: Sequence[tuple[Plan, Sequence[Job]]]) -> None:
    """Show a bar of all jobs of the grids until the process that runs them ends."""
    from tqdm import tqdm  # which reads TQDM_MININTERVAL now

    total = sum(job.steps for _, jobs in grids for job in jobs)
    interval = POLL_S if sys.stderr.isatty() else LOG_EVERY_S
    shown = time.monotonic()
    title = f"{grids[0][0].name} grid" + (f" of {len(grids)} models" if len(grids) > 1 else "")
    state = text(_counts(grids), "")
    with tqdm(total=total, desc=title, unit="step", smoothing=0.1, postfix=state) as bar:
        while process.poll() is None:
            states = [state for plan, _ in grids for state in _states(plan.path.parent)]
            bar.n = min(total, sum(state.done for state in states))
            if time.monotonic() - shown >= interval:
                _describe(bar, grids, states)
                bar.refresh()
                shown = time.monotonic()
            time.sleep(POLL_S)
        _describe(bar, grids, [])
        bar.n = total if process.returncode == 0 else bar.n


def _describe(
    bar: Any, grids: Sequence[tuple[Plan, Sequence[Job]]], states: Sequence[State]
) -> None:
    latest = max(states, key=lambda state: state.at, default=None)
    bar.set_postfix_str(text(_counts(grids), latest.doing if latest else ""), refresh=False)


def _counts(grids: Sequence[tuple[Plan, Sequence[Job]]]) -> Counter[str]:
    return sum((counts(plan.path.parent, jobs) for plan, jobs in grids), Counter())


def _state(place: Path, name: str) -> str:
    if (place / markers.DONE / name).is_file():
        return DONE
    log = place / failures.LOGS / f"{name}{failures.SUFFIX}"
    if not log.is_file():
        return WAITING
    return FAILED if failures.exit_code(log) is not None else RUNNING


def _states(place: Path) -> Iterator[State]:
    for path in (place / "progress").glob("*.json"):
        with contextlib.suppress(DamagedFile):  # it moves the bar only, and the job writes it anew
            yield schema.read(path, State, "delete it")
