"""What of a campaign failed and why, as Snakemake's log and the logs of the jobs tell it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LOGS, SUFFIX = "logs", ".log"  # beside a plan: the output of each job's last attempt
USER_ERROR = ".user-error"  # a copy of it, with which the next attempts at that job end at once
EXIT = "exit code "  # begins the last line of the log of a job that failed
BLOCK = re.compile(
    r"^Error in rule .*?(?=^Error in rule |^\[\w{3} \w{3} |\Z)", re.MULTILINE | re.DOTALL
)
OUTPUT = re.compile(r"^ +output: (.*/)?done/([^/\s]+)", re.MULTILINE)
STATE = re.compile(r"SLURM.*status is: '(\w+)'")
SLURM_LOG = re.compile(r"^ +log: .*, (/.+?\.log) \(check log", re.MULTILINE)
# What Slurm's daemon writes there of a job without memory, whose state is only FAILED to `squeue`.
WITHOUT_MEMORY = re.compile(r"^slurmstepd\S*: error: .*(job memory limit|oom_kill)", re.MULTILINE)
REFUSAL = re.compile(
    r"SLURM sbatch failed\. The error message was '(.*?)'\.$", re.DOTALL | re.MULTILINE
)
ERROR = r"error: "
EXCEPTION = r"(?!WorkflowError|RuleException|CalledProcessError)[\w.]+(Error|Exception)\b"
OUT_OF_MEMORY = "OUT_OF_MEMORY"
REMEDIES: Mapping[str, str] = {
    "TIMEOUT": " (give more hours by --time)",
    OUT_OF_MEMORY: " (give more by --mem)",
    "CANCELLED": " (somebody, or the cluster, cancelled it)",
}
SIGNALLED = 128  # a shell's exit code for a program that a signal ended: this and its number


@dataclass(frozen=True)
class Failure:
    """A job that failed. code: its exit code, if it ended by itself; state: Slurm's, if it has one.

    log: its output, if it wrote some. error: the last error of the log, or its last line.
    """

    job: str
    code: int | None = None
    state: str = ""
    log: Path | None = None
    error: str = ""


def failures(log: str, place: Path, root: Path) -> list[Failure]:
    """The failed jobs of a run, by Snakemake's log of it; `place` is the folder of the plan, `root`
    Snakemake's, where its paths begin.

    A job's last attempt counts; one that a later attempt finished has a marker and is left out.
    """
    by_job: dict[str, Failure] = {}
    for block in BLOCK.findall(log):
        output = OUTPUT.search(block)
        if not output or os.path.normpath(root / (output[1] or "")) != str(place):
            continue  # a job of another grid
        if not (place / "done" / output[2]).is_file():
            by_job[output[2]] = _failure(output[2], block, place)
    return list(by_job.values())


def by_job(place: Path) -> dict[str, str]:
    """By name of a job that failed, what happened to it, as its log beside a plan tells it."""
    reasons = {}
    for log in sorted((place / LOGS).glob(f"*{SUFFIX}")):
        if exit_code(log) is not None and not (place / "done" / log.stem).is_file():
            failure = _failure(log.stem, "", place)
            words = f": {failure.error}" if failure.error else ""
            reasons[failure.job] = _how(failure, out_of_memory=False) + words
    return reasons


def text(failure: Failure, command: str, *, out_of_memory: bool) -> str:
    """Some lines for people: what happened to a job, its last words, and how to run it alone.

    out_of_memory: whether the kernel has killed a process of this machine's for want of memory.
    """
    lines = [f"{failure.job} {_how(failure, out_of_memory=out_of_memory)}"]
    if failure.error:
        lines.append(f"  last words: {failure.error}")
    if failure.log:
        lines.append(f"  its log: {failure.log}")
    lines.append(f"  alone: {command}")
    return "\n".join(lines)


def exit_code(log: Path) -> int | None:
    """The exit code in the last line of a job's log; None where the job has not failed."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - len(EXIT) - 8))
        last = file.read().decode(errors="replace").splitlines()[-1:]
    return int(last[0].removeprefix(EXIT)) if last and last[0].startswith(EXIT) else None


def last_error(lines: list[str]) -> str:
    """The last of our errors among lines; without one the last exception, or else the last line."""
    for pattern in (ERROR, EXCEPTION):
        errors = [line for line in lines if re.match(rf"(\[rank\d+\]: )?({pattern})", line)]
        if errors:
            return errors[-1].strip()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _failure(job: str, block: str, place: Path) -> Failure:
    match = STATE.search(block)
    state = match[1] if match else ""
    log = place / LOGS / f"{job}{SUFFIX}"
    lines = _text(log).splitlines()
    code = exit_code(log) if lines else None
    if code is not None:
        lines.pop()
    of_slurm = SLURM_LOG.search(block)
    if of_slurm and WITHOUT_MEMORY.search(_text(Path(of_slurm[1]))):
        state = OUT_OF_MEMORY
    refusal = REFUSAL.search(block)
    error = "; ".join(refusal[1].splitlines()) if refusal else last_error(lines)
    return Failure(job, code, state, log if lines else None, error)


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.is_file() else ""


def _how(failure: Failure, *, out_of_memory: bool) -> str:
    if failure.state and failure.state != "FAILED":
        return f"was ended by Slurm: {failure.state}{REMEDIES.get(failure.state, '')}"
    if failure.code is None:
        return "did not start" if failure.log is None else "ended without an exit code"
    if failure.code > SIGNALLED:
        name = signal.Signals(failure.code - SIGNALLED).name
        memory = name == "SIGKILL" and out_of_memory
        return f"was killed ({name})" + (", because the machine ran out of memory" * memory)
    if failure.code == os.EX_TEMPFAIL:
        return "was ended by a signal in its training, and goes on from its last checkpoint"
    return f"failed (exit code {failure.code})"


def tail(path: Path, start: int) -> str:
    """What a log holds after byte `start`."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def of_snakemake(log: str, code: int) -> str:
    """What to say where no job failed and yet the workflow did: its exit and its last words."""
    ended = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
    return f"the workflow {ended}; last words: {last_error(log.splitlines()) or 'nothing'}"


def report(
    log: str, place: Path, commands: Mapping[str, str], root: Path, *, out_of_memory: bool
) -> Iterator[str]:
    """A text of each failed job; see `failures`."""
    for failure in failures(log, place, root):
        yield text(failure, commands[failure.job], out_of_memory=out_of_memory)
