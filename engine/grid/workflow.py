"""Planned campaigns at work: a Snakemake workflow, its locks, its progress bar and its end.

Snakemake resumes, retries and reaches clusters. The grids of several models are one workflow, so
that a GPU which one of them leaves idle works for another. A lock keeps two campaigns out of the
same folder, and no process of a campaign outlives it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import CampaignError
from engine.grid import failures, job_commands, markers, progress, slurm
from engine.grid.campaign import Plan, check_users_methods
from engine.grid.job_graph import REPORT, Job
from engine.grid.sites import Site
from engine.machine import environment, memory, parent
from engine.machine.files import write_atomic
from engine.store.artifacts import Store
from loaders import locks, schema

WORKFLOW = Path(__file__).with_suffix(".smk")
CANCEL_S = 30  # for Slurm to be told to cancel jobs
GRACE_S = 5  # for jobs to end after an interruption; what they finished is on disk
LEFT_OVER_S = 24 * 3600  # younger temporary folders may be in use
FILE = "workflow.json"  # beside a plan: its jobs, and those of grids that run with it
JOBS = "RIB_WORKFLOW"  # the variable that names the jobs; a word of the command is read as YAML
ENDING = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Grid:
    """A plan, its jobs, and where they run.

    priorities: by job; of those that could start, that of the highest number does. None: equal.
    """

    plan: Plan
    jobs: Sequence[Job]
    site: Site
    priorities: Mapping[str, int] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """The folder of the plan, with markers and logs of its jobs."""
        return self.plan.path.parent

    @property
    def workflow(self) -> Path:
        """The file with the jobs of all grids, where this one is the first."""
        return self.place / FILE

    @property
    def commands(self) -> dict[str, str]:
        """The command of each job."""
        return job_commands.commands(self.plan, self.jobs, self.site)

    def plain(self) -> dict[str, dict[str, Any]]:
        """What `workflow.smk` reads of each job."""
        commands = self.commands
        return {
            job.name: {
                "stage": job.stage,
                "after": job.after,
                "command": commands[job.name],
                "resources": self.site.resources[job.name].plain(),
                "priority": self.priorities.get(job.name, 0),
            }
            for job in self.jobs
        }


def run(grids: Sequence[Grid], *, dry_run: bool = False) -> None:
    """Run what is missing of campaigns, all at once, on the first one's site.

    Raises CampaignError when a job fails; campaigns that do not wait for it are finished first.
    """
    first, site = grids[0], grids[0].site
    with contextlib.ExitStack() as stack:
        for grid in grids:
            stack.enter_context(locked(grid.plan.folder))
            write_atomic(grid.plan.path, plan_text(grid.plan))
        jobs = {relative(grid.place, first.place): grid.plain() for grid in grids}
        write_atomic(first.workflow, json.dumps(jobs, indent=1).encode())
        command = [
            *(sys.executable, "-P", "-m", "snakemake", "--snakefile", str(WORKFLOW)),
            *("--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime"),
            *("--directory", str(first.place)),
            *(["--jobs", str(sum(map(len, jobs.values())))] if site.on_slurm else []),
            *(["--keep-going"] if len(grids) > 1 else []),
            *site.words,
        ]
        if dry_run:
            _show_jobs(command, grids)
            return
        for grid in grids:
            check_users_methods(grid.plan)
        for grid in grids:
            _clean(grid.plan)
        _watch(command, grids)


def plan_text(plan: Plan) -> bytes:
    """The plan as its file, which `campaign.read` reads."""
    return schema.with_digest(dataclasses.asdict(plan))


def relative(place: Path, root: Path) -> str:
    """The folder of a plan from Snakemake's, whose path may hold the braces of its wildcards.

    Raises CampaignError where there are braces on the way, too.
    """
    way = os.path.relpath(place, root)
    if "{" in way or "}" in way:
        raise CampaignError(
            f"{place}: Snakemake cannot run several models in folders with braces; rename the "
            "campaign's file, or run its models alone"
        )
    return way


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which is free when the process ends.

    Raises CampaignError if another campaign holds it.
    """
    lock = folder / ".lock"

    def refuse() -> NoReturn:
        raise CampaignError(
            f"another campaign ({locks.holder(lock)}) is at work in {folder}; wait for it, or use "
            "runs=ANOTHER_FOLDER"
        )

    with locks.held(lock, refuse):
        yield


def _clean(plan: Plan) -> None:
    done = plan.path.parent / markers.DONE
    markers.forget_misleading(plan)
    logs = plan.path.parent / failures.LOGS
    for left in logs.glob(f"*{failures.USER_ERROR}"):  # the user may have mended it
        left.unlink()
    for log in logs.glob(f"*{failures.SUFFIX}"):
        if not (done / log.stem).is_file():  # of an earlier run, which did not finish the job
            log.unlink()
    Store(plan.folder.parent / "store").remove_left_overs(LEFT_OVER_S)


def _show_jobs(command: Sequence[str], grids: Sequence[Grid]) -> None:
    first = grids[0]
    done = subprocess.run(
        [*command, "--dry-run"], capture_output=True, text=True, env=_environment(first)
    )
    output = done.stdout + done.stderr
    if done.returncode:
        why = output.strip().splitlines()[-1]
        raise CampaignError(f"{first.plan.name} cannot be planned: {why}")
    outputs = set(re.findall(r"^ +output: (.+)$", output, re.MULTILINE))
    for grid in grids:
        folder = Path(relative(grid.place, first.place), markers.DONE)
        names = [job.name for job in grid.jobs if str(folder / job.name) in outputs]
        width = max(map(len, names), default=0)
        lines = [f"{name:<{width}}  {grid.site.resources[name].text()}" for name in names]
        print(f"{grid.plan.folder.name}: {len(names)} jobs would run", *lines, sep="\n  ")
        print(f"a column trains {', '.join(grid.plan.methods)}")


def _watch(command: Sequence[str], grids: Sequence[Grid]) -> None:
    site, log_path = grids[0].site, grids[0].place / "campaign.log"
    killed = memory.out_of_memory_kills()
    with log_path.open("ab") as log, _interrupted_by(ENDING):
        start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(grids[0]),
            preexec_fn=parent.follow,
        )
        try:
            progress.show(process, [(grid.plan, grid.jobs) for grid in grids])
        finally:
            _end(process, CANCEL_S if site.on_slurm else GRACE_S)
            if site.on_slurm and process.returncode:
                slurm.cancel(failures.tail(log_path, start))
    if process.returncode or not all((g.place / markers.DONE / REPORT).is_file() for g in grids):
        text, out_of_memory = failures.tail(log_path, start), memory.out_of_memory_kills() > killed
        reasons = [
            reason
            for grid in grids
            for reason in failures.report(
                text, grid.place, grid.commands, grids[0].place, out_of_memory=out_of_memory
            )
        ]
        reasons = reasons or [failures.of_snakemake(text, process.returncode)]
        raise CampaignError("\n".join(["the campaign stopped", *reasons, f"log: {log_path}"]))


def _environment(first: Grid) -> dict[str, str]:
    """Snakemake's, and so that of the jobs."""
    ours = {JOBS: str(first.workflow), parent.CAMPAIGN: parent.campaign()}
    return {**environment.of_jobs(), **ours, **first.site.environment}


@contextlib.contextmanager
def _interrupted_by(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Let these signals (a closed terminal, a scheduler's end) do what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # nohup's SIG_IGN stays.
    caught = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen, grace_s: float) -> None:
    """End the workflow and its jobs, which are one process group on this machine."""
    for number in (signal.SIGINT, signal.SIGTERM) if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
