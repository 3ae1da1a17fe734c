"""Run planned campaigns as a Snakemake workflow, with locks, a progress bar and a clean end.

Snakemake resumes and retries jobs, and submits them to clusters. The grids of several models are
one workflow, so a GPU that one leaves idle works for another. A lock keeps two campaigns out of
the same folder. No process of a campaign outlives it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from engine.campaigns import job_states, seal, sites
from engine.campaigns.events import Ended, Queued, append_event
from engine.campaigns.job_states import DONE, FINISHED, RUNNING, JobReader, JobState
from engine.campaigns.plan import COLUMN, REPORT, TRAIN, Plan, plan_to_json, stage_of
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.schedulers import RunOptions, Scheduler
from engine.campaigns.sites import Resources, Site
from engine.errors import CampaignError
from engine.machine import parent, preemption
from engine.machine.files import room_for
from engine.machine.follower import following
from engine.store import use
from engine.store.artifacts import Store
from loaders.files import locks
from loaders.files.root import Root

WORKFLOW = Path(__file__).with_suffix(".smk")
CANCEL_S = 30  # for Snakemake to cancel a scheduler's jobs
GRACE_S = 5  # for jobs to end after an interruption; their finished artefacts are on disk
PING_S = 15  # between two questions to the scheduler
POLL_S = 0.5
READ_S = 0.005  # between two reads of the jobs, for each job
LOG_EVERY_S = 30  # between two states of the progress bar if stderr is not a terminal
FILE = "workflow.json"  # next to a plan: its jobs, and those of campaigns that run with it
LOG = "campaign.log"  # next to a plan: Snakemake's output
JOBS = "RIB_WORKFLOW"  # variable with the path of FILE; --config would parse the path as YAML
ENDING = (signal.SIGTERM, signal.SIGHUP)  # a scheduler's end, a closed terminal: handled as Ctrl-C


def run(plans: Sequence[Plan], options: RunOptions, *, dry_run: bool = False) -> None:
    """Run the missing jobs of campaigns, all in one workflow.

    Raises CampaignError if a job fails, after finishing the other campaigns.
    """
    where = sites.choose_site(options, plans)
    jobs = where.jobs_per_column
    plans = [dataclasses.replace(p, device=where.device, jobs_per_column=jobs) for p in plans]
    asked = [sites.resources(options, where, plan, len(plans)) for plan in plans]
    if dry_run:
        for plan, resources in zip(plans, asked, strict=True):
            _show_jobs(plan, resources)
        return
    with contextlib.ExitStack() as stack:
        for plan in plans:
            stack.enter_context(use.in_use(Store(plan.place.store)))
            stack.enter_context(locked(plan.place))
            _begin(plan, where)
        file = _write_settings(plans, asked, where)
        words = _snakemake(plans, where)
        # Jobs inherit Snakemake's environment.
        environment = {**parent.environment_of_jobs(), JOBS: str(file), **where.environment}
        run_snakemake(words, plans, where, environment)


def _begin(plan: Plan, where: Site) -> None:
    """Queue the jobs of a plan that is locked, and write it."""
    store = Store(plan.place.store)
    with room_for(plan.place.plan):
        job_states.begin(plan)
        for folder in use.left_overs(store, use.LEFT_OVER_S):
            store.files.remove(folder)
        plan.place.root.write(plan.place.plan, plan_to_json(plan))
    if where.scheduler:  # of a command that was killed together with Snakemake
        where.scheduler.cancel(plan.place.path)
    for job, share in plan.shares.items():  # another number of them may have run before
        if job_states.is_done(plan.place, share.column.job):
            job_states.set_done(plan.place, job)


def _write_settings(
    plans: Sequence[Plan], asked: Sequence[Mapping[str, Resources]], where: Site
) -> Path:
    """Write what the workflow reads of each plan (`FILE`), next to the first, and return its path.

    asked: the resources of a plan's jobs.
    """
    settings = {}
    for plan, resources in zip(plans, asked, strict=True):
        # Relative to Snakemake's folder: braces in its path would be wildcards.
        settings[os.path.relpath(plan.place.path, plans[0].place.plans)] = {
            "folder": os.getcwd(),
            "needs": plan.needs,
            "priorities": sites.priorities(where, plan),
            "program": _program(plan, where),
            "resources": resources,
        }
    return plans[0].place.root.write(FILE, json.dumps(settings, indent=1).encode())


def _snakemake(plans: Sequence[Plan], where: Site) -> list[str]:
    """The command line of Snakemake, which works next to the first plan."""
    return [
        *(sys.executable, "-P", "-m", "snakemake", "--snakefile", str(WORKFLOW)),
        *("--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime"),
        # Without this, Snakemake loads and evaluates a profile of the working folder.
        *("--workflow-profile", "none", "--directory", str(plans[0].place.plans)),
        *(["--jobs", str(sum(len(plan.jobs) for plan in plans))] if where.scheduler else []),
        *(["--keep-going"] if len(plans) > 1 else []),
        *where.words,
    ]


def command(plan: Plan, where: Site) -> str:
    """The shell command that runs a job of the plan. Append the job's name."""
    return f"{shlex.join(['cd', os.getcwd()])} && {shlex.join(_program(plan, where))}"


def _program(plan: Plan, where: Site) -> list[str]:
    # -P: the user's working folder may contain packages with our names.
    program = [sys.executable, "-P", "-m", "engine.commands.job", "--plan", str(plan.place.plan)]
    return [*program, *(["--ranks", str(where.ranks)] if where.ranks > 1 else [])]


@contextlib.contextmanager
def locked(place: PlanFolder) -> Iterator[None]:
    """Hold the lock of a plan's campaign. It is released when the process ends.

    Raises CampaignError if another campaign holds it.
    """

    def refuse() -> NoReturn:
        raise CampaignError(
            f"another campaign ({locks.holder(place.lock)}) is using {place.campaign}: wait "
            "until it ends, or use runs=ANOTHER_FOLDER"
        )

    with locks.held(place.lock, refuse, Root(place.runs)):
        yield


def _show_jobs(plan: Plan, asked: Mapping[str, Resources]) -> None:
    """Print the jobs that would run, or those of a finished campaign, without running user code or
    writing files."""
    begun = not job_states.is_done(plan.place, REPORT)
    done = {job for job in plan.jobs if begun and job_states.is_done(plan.place, job)}
    done |= {share.job for share in plan.shares.values() if share.column.job in done}
    names = [job for job in plan.jobs if job not in done]
    width = max(map(len, names))
    stages = {job: stage_of(job) for job in names}
    lines = [f"{job:<{width}}  {sites.text(asked[stage])}" for job, stage in stages.items()]
    plural = "s" * (len(names) != 1)
    would = ", all done" if seal.finished(plan) else " would run"
    print(f"{plan.place.campaign.name}: {len(names)} job{plural}{would}", *lines, sep="\n  ")
    if {TRAIN, COLUMN} & set(stages.values()):
        print(f"a column trains {', '.join(plan.methods)}")


def run_snakemake(
    words: Sequence[str], plans: Sequence[Plan], where: Site, environment: Mapping[str, str]
) -> None:
    """Run the command line `words`, show the jobs' progress, and record how jobs ended.

    Raises CampaignError, with the reason for each job that failed, unless all reports are written.
    """
    log_path = plans[0].place.path / LOG
    with (
        plans[0].place.root.open(LOG, "ab") as log,
        preemption.handled(ENDING, signal.default_int_handler),
    ):
        begin = log.tell()  # after the output of earlier runs
        process = subprocess.Popen(
            following(words),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
        try:
            readers = [JobReader(plan) for plan in plans]
            ask = _asked(where.scheduler, process.pid, readers) if where.scheduler else str
            _show_progress(process, readers, ask)
        finally:
            _end(process, CANCEL_S if where.scheduler else GRACE_S)
            if where.scheduler and process.returncode:
                where.scheduler.cancel(plans[0].place.path)
    if process.returncode or not all(job_states.is_done(plan.place, REPORT) for plan in plans):
        said = log_path.read_bytes()[begin:].decode(errors="replace")
        reasons = []
        for plan in plans:
            _record_ends(plan, plans[0].place.plans, where.scheduler, said)
            alone = f"\n  alone: {command(plan, where)}"
            reasons += [f"{text}{alone} {job}" for job, text in job_states.failures(plan)]
        if not reasons:
            code = process.returncode
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"
            last = next(filter(None, map(str.strip, reversed(said.split("\n")))), "nothing")
            of_queue = where.scheduler.refusal(said) if where.scheduler else ""
            reasons = [of_queue or f"the workflow {how}; last message: {last}"]
        raise CampaignError("\n".join(["the campaign stopped", *reasons, f"log: {log_path}"]))


def _record_ends(plan: Plan, root: Path, scheduler: Scheduler | None, log: str) -> None:
    """Record how jobs ended that could not say it, once none is at work. log: Snakemake's."""
    ends = scheduler.ends(log) if scheduler else {}
    grid = os.path.relpath(plan.place.path, root)
    for job, state in job_states.read_jobs(plan).items():
        # A job that is stopped for its time may still say that it was.
        has_said = state.end.error and state.end.code != os.EX_TEMPFAIL
        if state.state == FINISHED or has_said:
            continue
        how = "was killed" if state.state == RUNNING else ""
        if scheduler:
            number = state.current[-1].queued_as if state.current else ""
            cause = scheduler.end_of(number) or ends.get(f"{grid}/{DONE}/{job}")
            if cause or state.state == RUNNING:
                how = f"was ended by {scheduler.title}: {cause or 'it gives no reason'}"
        if how:
            append_event(plan.place, job, Ended(how=how))


def _show_progress(
    process: subprocess.Popen, readers: Sequence[JobReader], watch: Callable[[], str]
) -> None:
    """Show a progress bar of all jobs until the process ends, and messages above it.

    watch: returns the message, which is printed whenever it changes.
    """
    from tqdm import tqdm  # late: it reads TQDM_MININTERVAL on import

    def read() -> list[JobState]:
        return [state for reader in readers for state in reader.read().values()]

    def text(states: Sequence[JobState]) -> str:
        numbers = Counter(state.state for state in states)
        return job_states.text(numbers, job_states.doing(states))

    total = sum(job_states.steps(reader.plan, reader.read()) for reader in readers)
    states, last = read(), ""
    read_every_s = max(POLL_S, READ_S * len(states))
    show_every_s = POLL_S if sys.stderr.isatty() else LOG_EVERY_S
    read_at = shown_at = time.monotonic()
    title = readers[0].plan.name + " grid"
    title += f" of {len(readers)} models" if len(readers) > 1 else ""
    with tqdm(total=total, desc=title, unit="step", smoothing=0.1, postfix=text(states)) as bar:
        while process.poll() is None:
            if time.monotonic() - read_at >= read_every_s:
                states, read_at = read(), time.monotonic()
            bar.n = min(total, job_states.steps_done(states))
            if time.monotonic() - shown_at >= show_every_s:
                bar.set_postfix_str(text(states), refresh=False)
                bar.refresh()
                shown_at = time.monotonic()
            if last != (message := watch()):
                bar.write(message, file=sys.stderr)
                last = message
            time.sleep(POLL_S)
        bar.set_postfix_str(text(read()), refresh=False)
        bar.n = total if process.returncode == 0 else bar.n


def _asked(scheduler: Scheduler, workflow: int, readers: Sequence[JobReader]) -> Callable[[], str]:
    """A function that returns a message while a scheduler does not answer or takes no jobs.

    It records what happened to jobs that the scheduler put back into its queue, or forgot.
    """
    asked, failed, message = time.monotonic(), 0, ""

    def ask() -> str:
        nonlocal asked, failed, message
        if time.monotonic() - asked <= PING_S:
            return message
        begun = [(reader.plan, reader.read()) for reader in readers]  # before the scheduler's say
        states = scheduler.states()
        asked, failed = time.monotonic(), failed + 1 if states is None else 0
        if states is not None:
            lost = [text for plan, jobs in begun for text in _lost(plan, jobs, scheduler, states)]
            message = "\n".join(filter(None, [scheduler.obstacle(workflow), *lost]))
        elif failed > 1:
            message = (
                f"{scheduler.title} does not answer: its jobs continue, and so will this command "
                "once it answers again"
            )
        return message

    return ask


def _lost(
    plan: Plan, jobs: Mapping[str, JobState], scheduler: Scheduler, states: Mapping[str, str]
) -> Iterator[str]:
    """Record jobs that began and are not at work. Yields a message for each that has ended."""
    for job, state in jobs.items():
        last = state.current[-1] if state.current else None
        if state.state != RUNNING or not last or not last.queued_as or last.ended:
            continue
        number = last.queued_as
        if states.get(number) == "PENDING":
            append_event(plan.place, job, Queued())
        elif number not in states:
            cause = scheduler.end_of(number) or f"it no longer knows its job {number}"
            append_event(plan.place, job, Ended(how=f"was ended by {scheduler.title}: {cause}"))
            yield f"{job} was ended by {scheduler.title}: {cause}; it runs again"


def _end(process: subprocess.Popen, grace_s: float) -> None:
    """End the workflow and its jobs, which share a process group on this machine."""
    for number in (signal.SIGINT, signal.SIGTERM) if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
