"""The progress bar of a campaign's jobs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from engine.campaigns import job_states
from engine.campaigns.job_states import FAILED, FINISHED, RUNNING, WAITING, JobState
from engine.campaigns.plan import Plan

POLL_S = 0.5
LOG_EVERY_S = 30  # between two states of the bar if stderr is not a terminal


def text(numbers: Counter[str], doing: str) -> str:
    """`3 running, 5 waiting, 2 done; preparing few`."""
    names = [name for name in (RUNNING, WAITING, FINISHED, FAILED) if numbers[name]]
    parts = [f"{numbers[name]} {name}" for name in names]
    return "; ".join(filter(None, [", ".join(parts), doing]))


def show(process: subprocess.Popen, plans: Sequence[Plan], watch: Callable[[], str] = str) -> None:
    """Show a progress bar of all jobs of the plans until the process that runs them ends.

    watch: returns a message, which is printed above the bar whenever it changes.
    """
    from tqdm import tqdm  # late: it reads TQDM_MININTERVAL on import

    total = sum(job_states.steps(plan, job_states.read_jobs(plan)) for plan in plans)
    interval = POLL_S if sys.stderr.isatty() else LOG_EVERY_S
    shown, last = time.monotonic(), ""
    title = f"{plans[0].name} grid" + (f" of {len(plans)} models" if len(plans) > 1 else "")
    first = _text(_states(plans))
    with tqdm(total=total, desc=title, unit="step", smoothing=0.1, postfix=first) as bar:
        while process.poll() is None:
            states = _states(plans)
            bar.n = min(total, job_states.steps_done(states))
            if time.monotonic() - shown >= interval:
                bar.set_postfix_str(_text(states), refresh=False)
                bar.refresh()
                shown = time.monotonic()
            if last != (message := watch()):
                bar.write(message, file=sys.stderr)
                last = message
            time.sleep(POLL_S)
        bar.set_postfix_str(_text(_states(plans)), refresh=False)
        bar.n = total if process.returncode == 0 else bar.n


def _text(states: Sequence[JobState]) -> str:
    return text(Counter(state.state for state in states), job_states.doing(states))


def _states(plans: Sequence[Plan]) -> list[JobState]:
    return [state for plan in plans for state in job_states.read_jobs(plan).values()]
