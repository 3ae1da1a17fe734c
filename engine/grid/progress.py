"""How far the jobs of campaigns are: each writes it to a file, and a bar shows it to people."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.grid import outcomes
from engine.grid.campaign import Plan
from engine.grid.place import files
from loaders import schema
from loaders.schema import DamagedFile

FOLDER = "progress"  # beside a plan
POLL_S = 0.5
LOG_EVERY_S = 30  # between two states of the bar where nobody watches it move
RUNNING, WAITING, DONE, FAILED = "running", "waiting", "done", "failed"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a job is, in steps, when it wrote this (seconds since 1970), and what it does."""

    done: int
    total: int
    at: float
    doing: str


def advance(path: Path, name: str, done: int, total: int, doing: str = "") -> None:
    """Write how far a job of the plan at `path` is, and what it does, for the progress bar."""
    state = State(done, total, time.time(), doing)
    files(path.parent).write(f"{FOLDER}/{name}.json", msgspec.json.encode(state))


def counts(place: Path, jobs: Sequence[str]) -> Counter[str]:
    """How many jobs of the plan in the folder `place` are running, waiting, done or failed.

    A job has a log from its start.
    """
    return Counter(_state(place, job) for job in jobs)


def states(plan: Plan) -> dict[str, State]:
    """How far each job of a plan is that was begun."""
    begun: dict[str, State] = {}
    for job in plan.jobs:
        # A damaged file moves the bar only, and the job writes it anew.
        with contextlib.suppress(DamagedFile, FileNotFoundError):
            file = plan.place / FOLDER / f"{job}.json"
            begun[job] = schema.read(file, State, "delete it", files(plan.place))
    return begun


def text(numbers: Counter[str], doing: str) -> str:
    """`3 running, 5 waiting, 2 done; preparing few`."""
    names = [name for name in (RUNNING, WAITING, DONE, FAILED) if numbers[name]]
    parts = [f"{numbers[name]} {name}" for name in names]
    return "; ".join(filter(None, [", ".join(parts), doing]))


def show(process: subprocess.Popen, plans: Sequence[Plan], watch: Callable[[], str] = str) -> None:
    """Show a bar of all jobs of the plans until the process that runs them ends.

    watch: what it says beside the bar is shown, once each time that it changes.
    """
    from tqdm import tqdm  # which reads TQDM_MININTERVAL now

    total = sum(plan.steps for plan in plans)
    interval = POLL_S if sys.stderr.isatty() else LOG_EVERY_S
    shown, last = time.monotonic(), ""
    title = f"{plans[0].name} grid" + (f" of {len(plans)} models" if len(plans) > 1 else "")
    state = text(_counts(plans), "")
    with tqdm(total=total, desc=title, unit="step", smoothing=0.1, postfix=state) as bar:
        while process.poll() is None:
            begun = [state for plan in plans for state in states(plan).values()]
            bar.n = min(total, sum(state.done for state in begun))
            if time.monotonic() - shown >= interval:
                _describe(bar, plans, begun)
                bar.refresh()
                shown = time.monotonic()
            if last != (message := watch()):
                bar.write(message, file=sys.stderr)
                last = message
            time.sleep(POLL_S)
        _describe(bar, plans, [])
        bar.n = total if process.returncode == 0 else bar.n


def _describe(bar: Any, plans: Sequence[Plan], begun: Sequence[State]) -> None:
    latest = max(begun, key=lambda state: state.at, default=None)
    bar.set_postfix_str(text(_counts(plans), latest.doing if latest else ""), refresh=False)


def _counts(plans: Sequence[Plan]) -> Counter[str]:
    return sum((counts(plan.place, plan.jobs) for plan in plans), Counter())


def _state(place: Path, job: str) -> str:
    if outcomes.is_done(place, job):
        return DONE
    if not files(place).has(f"{outcomes.LOGS}/{job}{outcomes.LOG}"):
        return WAITING
    return RUNNING if outcomes.exit_code(place, job) is None else FAILED
