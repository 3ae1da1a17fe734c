"""Slurm's states of jobs: what they are, and how a job ended."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from engine.errors import CampaignError
from engine.machine import programs

QUEUE = ("squeue", "--me", "--noheader")
REMEDIES = {  # by Slurm's states of a job
    "TIMEOUT": " (give more hours by --time)",
    "OUT_OF_MEMORY": " (give more by --mem)",
    "CANCELLED": " (somebody, or the cluster, cancelled it)",
}
NO_CAUSE = ("", "FAILED", "RUNNING", "COMPLETED", "COMPLETING", "PENDING")  # of an early end
WITHOUT_MEMORY = ("job memory limit", "oom_kill")  # in the output of a job that ran out of memory
_ENDED = re.compile(r"SLURM-job '\S+' failed.*?status is: '(\w+)'.*?output: (\S+)", re.DOTALL)


def states_of_jobs() -> dict[str, str] | None:
    """The states of the user's jobs by ID, such as PENDING; None if Slurm does not answer."""
    try:
        lines = answer(*QUEUE, "--states", "all", "--format", "%i %T").splitlines()
    except CampaignError:
        return None
    return dict(map(str.split, lines))


def cause_of_end(job: str) -> str:
    """Slurm's state of a job that Slurm ended, with a remedy; empty for other jobs."""
    state = _state(job)
    return "" if state in NO_CAUSE else f"{state}{REMEDIES.get(state, '')}"


def causes_in(log: str) -> dict[str, str]:
    """The states, with remedies, of failed jobs in Snakemake's log, by the job's marker."""
    return {job: f"{state}{REMEDIES.get(state, '')}" for state, job in _ENDED.findall(log)}


def _state(job: str) -> str:
    """Slurm's state of a finished job, such as TIMEOUT, or empty if Slurm no longer knows it.

    Returns empty for anything but a job ID, which could be an option of the command.
    """
    if not re.fullmatch("[0-9]+(_[0-9]+)?", job):
        return ""
    with contextlib.suppress(CampaignError):
        return _with_memory(answer("scontrol", "show", "job", job))
    with contextlib.suppress(CampaignError):
        command = ("sacct", "-X", "--noheader", "--parsable2", "--format", "State", "--jobs", job)
        return " ".join(answer(*command).split()[:1])
    return ""


def _with_memory(job: str) -> str:
    """The state in Slurm's description of a job.

    Slurm may describe a job that ran out of memory as FAILED; then its output has Slurm's message.
    """
    facts = dict(re.findall(r"^ *(JobState|StdOut)=(.+)", job, re.MULTILINE))
    state = facts.get("JobState", "").partition(" ")[0]
    output = Path(facts.get("StdOut", ""))
    if state == "FAILED" and output.is_file():
        text = output.read_text(errors="replace", encoding="utf-8")
        if any(words in text for words in WITHOUT_MEMORY):
            return "OUT_OF_MEMORY"
    return state


def answer(*command: str) -> str:
    """A program's output. Raises CampaignError if Slurm does not answer."""
    try:
        return programs.answer(*command)
    except programs.NoAnswer as error:
        raise CampaignError(f"Slurm does not answer: {error}") from error
