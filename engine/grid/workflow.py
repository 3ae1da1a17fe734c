"""A planned campaign at work: a Snakemake workflow, its lock, its progress bar and its end.

A column (a downstream set) is a job: it trains its methods in one warm process and evaluates them
on every set. Snakemake resumes, retries and reaches clusters. A lock keeps two campaigns out of the
same folder, and no process of a campaign outlives it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import CampaignError
from engine.grid import failures, job_commands, slurm
from engine.grid.campaign import Plan, check_users_methods, finished
from engine.grid.sites import Site
from engine.machine import memory, parent
from engine.machine.files import write_atomic

WORKFLOW = Path(__file__).with_suffix(".smk")
POLL_S = 0.5
LOG_EVERY_S = 30  # between two states of the bar where nobody watches it move
CANCEL_S = 30  # for Slurm to be told to cancel jobs
GRACE_S = 5  # for jobs to end after an interruption; what they finished is on disk
LEFT_OVER_S = 24 * 3600  # younger temporary folders may be in use
PLAN = "RIB_PLAN"  # the variable that names the plan; a word of the command would be read as YAML
LEASH = "RIB_CAMPAIGN"  # the variable that names a job's campaign: host and process
ENDING = (signal.SIGTERM, signal.SIGHUP)


def run(plan: Plan, site: Site, *, dry_run: bool = False) -> None:
    """Run what is missing of a campaign. Raises CampaignError when a job fails."""
    with locked(plan.folder):
        path = plan.path
        values = dataclasses.asdict(plan) | {
            "resources": {name: needs.plain() for name, needs in site.resources.items()},
            "commands": job_commands.commands(plan, site),
        }
        write_atomic(path, json.dumps(values, indent=1, default=str).encode())
        command = [
            *(sys.executable, "-P", "-m", "snakemake", "--snakefile", str(WORKFLOW)),
            *("--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime"),
            *("--directory", str(path.parent)),
            *site.words,
        ]
        if dry_run:
            _show_jobs(command, plan, site)
            return
        check_users_methods(plan)
        _clean(plan)
        _watch(command, plan, site)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel frees when the process ends.

    Raises CampaignError if another campaign holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise CampaignError(
                f"another campaign (process {file.read().strip() or 'unknown'}) is at work in "
                f"{folder}; wait for it, or use runs=ANOTHER_FOLDER"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def advance(path: Path, name: str, done: int, total: int, doing: str = "") -> None:
    """Write how far a job is, and what it does, for the campaign's progress bar."""
    values = {"done": done, "total": total, "at": time.time(), "doing": doing}
    write_atomic(path.parent / "progress" / f"{name}.json", json.dumps(values).encode())


def forget_columns(plan: Plan) -> None:
    """Let the next run visit all columns again. It finds what is finished there."""
    shutil.rmtree(plan.path.parent / "done", ignore_errors=True)


def end_with_campaign(plan: Plan) -> None:
    """Kill this job's process group as soon as its campaign's process ends, for whatever reason.

    The kernel then hands over the campaign's lock. A job that was started by hand has no campaign
    to follow, and a job on another machine may not see the lock.
    """
    host, _, campaign = os.environ.get(LEASH, "").partition(" ")
    if host != socket.gethostname():
        return
    file = (plan.folder / ".lock").open("a+")

    def follow(wait: int = 0) -> None:
        fcntl.flock(file, fcntl.LOCK_SH | wait)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    with contextlib.suppress(BlockingIOError):
        follow(fcntl.LOCK_NB)
    file.seek(0)
    if file.read() != campaign:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    threading.Thread(target=follow, daemon=True).start()


def _clean(plan: Plan) -> None:
    store = plan.folder.parent / "store"
    if not store.is_dir():  # then the markers of columns mean nothing
        forget_columns(plan)
    done = plan.path.parent / "done"
    if not finished(plan):
        (done / "report").unlink(missing_ok=True)
    for log in (plan.path.parent / failures.LOGS).glob(f"*{failures.SUFFIX}"):
        if not (done / log.stem).is_file():  # of an earlier run, which did not finish the job
            log.unlink()
    for left_over in store.glob("*/.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left_over.stat().st_mtime > LEFT_OVER_S:
                shutil.rmtree(left_over, ignore_errors=True)


def _show_jobs(command: Sequence[str], plan: Plan, site: Site) -> None:
    done = subprocess.run(
        [*command, "--dry-run"], capture_output=True, text=True, env=_environment(plan, site)
    )
    output = done.stdout + done.stderr
    if done.returncode:
        raise CampaignError(f"{plan.name} cannot be planned: {output.strip().splitlines()[-1]}")
    jobs = re.findall(r"^ +output: done/(.+)$", output, re.MULTILINE)
    lines = [f"{job:<{max(map(len, jobs))}}  {site.resources[job].text()}" for job in jobs]
    print(f"{plan.name}: {len(jobs)} jobs would run", *lines, sep="\n  ")
    print(f"a column trains and evaluates {', '.join(plan.methods)}")


def _watch(command: Sequence[str], plan: Plan, site: Site) -> None:
    place = plan.path.parent
    log_path = place / "campaign.log"
    killed = memory.out_of_memory_kills()
    with log_path.open("ab") as log, _interrupted_by(ENDING):
        start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(plan, site),
            preexec_fn=parent.follow,
        )
        try:
            _show_progress(process, plan, place)
        finally:
            _end(process, CANCEL_S if site.on_slurm else GRACE_S)
            if site.on_slurm and process.returncode:
                slurm.cancel(failures.tail(log_path, start))
    if process.returncode or not (place / "done" / "report").is_file():
        text, commands = failures.tail(log_path, start), job_commands.commands(plan, site)
        out_of_memory = memory.out_of_memory_kills() > killed
        reasons = list(failures.report(text, place, commands, out_of_memory=out_of_memory))
        reasons = reasons or [failures.of_snakemake(text, process.returncode)]
        raise CampaignError("\n".join(["the campaign stopped", *reasons, f"log: {log_path}"]))


def _environment(plan: Plan, site: Site) -> dict[str, str]:
    """Snakemake's: with plan and leash, without variables of the Slurm job that the command is in.

    A campaign's jobs would take themselves for tasks of that job.
    """
    outer = {name: value for name, value in os.environ.items() if not _of_slurm(name)}
    leash = f"{socket.gethostname()} {os.getpid()}"
    return {**outer, PLAN: str(plan.path), LEASH: leash, **site.environment}


def _of_slurm(variable: str) -> bool:
    return variable.startswith("SLURM_") and variable != "SLURM_CONF"


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


def _show_progress(process: subprocess.Popen, plan: Plan, place: Path) -> None:
    from tqdm import tqdm  # which reads TQDM_MININTERVAL now

    cells = len(plan.methods) * plan.seeds
    # A step is a cell, a column's evaluation, or a set that is prepared; model, upstream, report.
    total = len(plan.columns) * (cells + 1) + len(plan.sets) + 3
    interval = POLL_S if sys.stderr.isatty() else LOG_EVERY_S
    shown = time.monotonic()
    with tqdm(total=total, desc=f"{plan.name} grid", unit="step", smoothing=0.1) as bar:
        while process.poll() is None:
            states = list(_states(place))
            bar.n = min(total, sum(state["done"] for state in states))
            latest = max(states, key=lambda state: state["at"], default={})
            bar.set_postfix_str(latest.get("doing", ""), refresh=False)
            if time.monotonic() - shown >= interval:
                bar.refresh()
                shown = time.monotonic()
            time.sleep(POLL_S)
        bar.n = total if process.returncode == 0 else bar.n


def _states(place: Path) -> Iterator[dict[str, Any]]:
    for path in (place / "progress").glob("*.json"):
        yield json.loads(path.read_text())


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
