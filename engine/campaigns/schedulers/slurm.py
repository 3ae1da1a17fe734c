"""Slurm: the cluster's configuration, submitting and cancelling jobs, and how jobs ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.campaigns.schedulers import base
from engine.campaigns.schedulers.base import RETRIES, RunOptions
from engine.errors import CampaignError
from engine.machine import programs
from loaders.files.durable import short_digest

PLUGIN = "snakemake_executor_plugin_slurm"
LONGEST_CHECK_S = 180  # maximum interval between status checks: a constant of the plugin
LEAST_ARRAY = 3  # MaxArraySize that the plugin requires, although no job here is an array
# Without slurmdbd, only `squeue` knows how a job ended, and only until Slurm forgets the job.
MIN_JOB_AGE_S = LONGEST_CHECK_S + programs.ANSWER_S
FIRST_CHECK_S, CHECK_S = 10, 5  # after a submission; first interval between status checks
ATTEMPTS = 1_000_000  # per status check; after a failed check the plugin forgets all jobs
INSIDE = "run the campaign inside an allocation (sbatch -N1 -c8 --wrap 'rib campaign NAME')"
ASKED = "--cores, --mem, --time, --partition and --account set what jobs ask for"
LATER = "run the same command again once jobs have ended"
LIMITS = {  # by sbatch's error, what a user can do about a limit of the cluster
    "Resource temporarily unavailable": f"its queue is full, see MaxJobCount: {LATER}",
    "submit limit": f"your account may have no more jobs in the queue: {LATER}",
    "Requested node configuration": "no node has so much: ask for less by --gpus-per-job, --cores "
    "or --mem",
}
_OF_SHELLS = re.compile(r"[$`\"'\\;&|<>()*?!#\x00-\x1f]")
LATENCY_S = 60  # until other nodes see a file that one wrote
# Without slurmdbd: programs that also list jobs which Slurm has forgotten.
STAND_INS = Path(__file__).with_name("stand_ins")
REFUSED_S = 10  # sbatch tries again, for minutes and in silence, if the queue is full
QUEUE = ("squeue", "--me", "--noheader")
REMEDIES = {  # by Slurm's states of a job
    "TIMEOUT": " (give more hours by --time)",
    "OUT_OF_MEMORY": " (give more by --mem)",
    "CANCELLED": " (somebody, or the cluster, cancelled it)",
}
NO_CAUSE = ("", "FAILED", "RUNNING", "COMPLETED", "COMPLETING", "PENDING")  # of an early end
END = 2**16  # bytes at the end of an output that are read
WITHOUT_MEMORY = ("job memory limit", "oom_kill")  # in the output of a job that ran out of memory
_ENDED = re.compile(r"SLURM-job '\S+' failed.*?status is: '(\w+)'.*?output: (\S+)", re.DOTALL)


@dataclass(frozen=True)
class Cluster:
    """A cluster's configuration.

    has_gpus: whether any node of the partition has GPUs. accounting: whether slurmdbd runs, which
    `sacct` needs.
    """

    has_gpus: bool
    accounting: bool


def cluster(partition: str) -> Cluster:
    """The configuration of this machine's cluster.

    Raises CampaignError if Snakemake's plugin or Slurm's commands are missing, or if Slurm does not
    answer, lacks the partition, forgets finished jobs too early, or has job arrays switched off.
    """
    if importlib.util.find_spec(PLUGIN) is None:
        raise CampaignError(
            "--executor slurm needs Snakemake's plugin: pip install snakemake-executor-plugin-slurm"
        )
    if shutil.which("sbatch") is None:
        raise CampaignError("--executor slurm: this machine has no sbatch; use a login node")
    of_partition = ["--partition", partition] if partition else []
    offers = answer("sinfo", "--noheader", "--format", "%G", *of_partition)
    if partition and not offers.strip():
        raise CampaignError(f"--partition {partition}: Slurm has no such partition (see sinfo)")
    settings = dict(re.findall(r"^(\w+) *= *(.*)$", answer("scontrol", "show", "config"), re.M))
    accounting = "slurmdbd" in settings.get("AccountingStorageType", "")
    remembers_s = int(re.match(r"\d*", settings.get("MinJobAge", ""))[0] or 0)  # type: ignore[index]
    if not accounting and remembers_s < MIN_JOB_AGE_S:
        raise CampaignError(
            f"Slurm forgets a finished job after {remembers_s} s (MinJobAge) and has no slurmdbd, "
            f"so the way a job ended may get lost; {INSIDE}, or have MinJobAge set to 300"
        )
    if (arrays := int(settings.get("MaxArraySize", LEAST_ARRAY))) < LEAST_ARRAY:
        raise CampaignError(
            f"Slurm has job arrays switched off (MaxArraySize={arrays}), which Snakemake's plugin "
            f"requires; {INSIDE}"
        )
    return Cluster("gpu" in offers, accounting)


class Scheduler(base.Scheduler):
    """Slurm through Snakemake's plugin. `srun` starts the ranks of a job."""

    title = "Slurm"
    job_variable = "SLURM_JOB_ID"

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.cluster = cluster(options.partition)

    def device(self, chosen: str) -> str:
        """The device of the jobs. `auto` selects GPUs if the partition has some."""
        if chosen == "cuda" and not self.cluster.has_gpus:
            raise ValueError(
                "device=cuda, but no node of the partition has GPUs; see sinfo --Format=gres"
            )
        return "cpu" if chosen == "cpu" or not self.cluster.has_gpus else "cuda"

    def submission(self, place: Path) -> tuple[tuple[str, ...], dict[str, str]]:
        """As in `Scheduler`. Without slurmdbd, `squeue` provides the state of jobs."""
        for path in (str(place), os.getcwd()):  # the plugin puts them into a shell command
            if sign := _OF_SHELLS.search(path):
                raise ValueError(
                    f"{path!r} contains {sign[0]!r}, which Slurm's plugin would pass to a shell; "
                    "use another folder (runs=FOLDER, or another working directory)"
                )
        options, retries = self.options, self.options.retries
        given, environment = {"slurm_partition": options.partition}, {}
        if self.cluster.accounting:
            given["slurm_account"] = options.account
        else:
            environment["PATH"] = os.pathsep.join([str(STAND_INS), os.environ.get("PATH", "")])
            if options.account:  # the plugin would look it up in the accounting
                environment["SBATCH_ACCOUNT"] = options.account
        # Snakemake evaluates resources as Python: unquoted, `max` would be a function.
        defaults = [f"{name}={value!r}" for name, value in given.items() if value]
        words = (
            *("--executor", "slurm", "--retries", str(RETRIES if retries is None else retries)),
            *("--latency-wait", str(LATENCY_S), "--seconds-between-status-checks", str(CHECK_S)),
            *("--slurm-init-seconds-before-status-checks", str(FIRST_CHECK_S)),
            *("--slurm-status-command", "sacct" if self.cluster.accounting else "squeue"),
            *("--slurm-status-attempts", str(ATTEMPTS)),
            *("--slurm-logdir", str(place / "slurm"), "--slurm-jobname-prefix", _prefix(place)),
            *("--default-resources", *defaults),
            "--slurm-requeue" if options.requeue else "--slurm-no-requeue",
        )
        return words, environment

    def resources(self, cores: int) -> dict[str, int]:
        # On several nodes a job would see the GPUs of only one. Versions of the plugin differ on
        # whether `threads` counts per GPU or per job.
        return {"nodes": 1, "cpus_per_task": cores}

    def cancel(self, place: Path) -> None:
        with contextlib.suppress(CampaignError):  # Snakemake has tried, too
            lines = answer(*QUEUE, "--format", "%i %j").splitlines()
            prefix = f"{_prefix(place)}_"  # the plugin appends an ID of its own
            jobs = [line.split()[0] for line in lines if line.split()[1].startswith(prefix)]
            if jobs:
                answer("scancel", *jobs)

    @classmethod
    def end_of(cls, job: str) -> str:
        state = _state(job)
        return "" if state in NO_CAUSE else f"{state}{REMEDIES.get(state, '')}"

    def ends(self, log: str) -> Mapping[str, str]:
        return {job: f"{state}{REMEDIES.get(state, '')}" for state, job in _ENDED.findall(log)}

    def refusal(self, log: str) -> str:
        causes = "; ".join(dict.fromkeys(re.findall(r"sbatch: error: ([^'\n]+)", log)))
        hint = next((hint for words, hint in LIMITS.items() if words in causes), ASKED)
        return f"Slurm refused a job: {causes} ({hint})" if causes else ""

    def states(self) -> Mapping[str, str] | None:
        try:
            lines = answer(*QUEUE, "--states", "all", "--format", "%i %T").splitlines()
        except CampaignError:
            return None
        return dict(map(str.split, lines))

    def obstacle(self, workflow: int) -> str:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(workflow).children(recursive=True):
                if process.name() == "sbatch" and time.time() - process.create_time() > REFUSED_S:
                    return (
                        "Slurm does not take the next job (is its queue full? see MaxJobCount); "
                        "sbatch tries again"
                    )
        return ""


def _prefix(place: Path) -> str:
    """The prefix of the names, in the queue, of the jobs of a plan in this folder."""
    return f"rib-{place.name}-{short_digest(str(place))[:8]}"


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
    facts = dict(re.findall(r"^ *(JobState|StdOut)=(.+)", job, re.MULTILINE))
    state = facts.get("JobState", "").partition(" ")[0]
    # Slurm may describe a job that ran out of memory as FAILED; then its output has its message.
    output = Path(facts.get("StdOut", ""))
    if state == "FAILED" and output.is_file():
        with output.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - END))
            text = file.read().decode(errors="replace")
        if any(words in text for words in WITHOUT_MEMORY):
            return "OUT_OF_MEMORY"
    return state


def answer(*command: str) -> str:
    """A program's output. Raises CampaignError if Slurm does not answer."""
    try:
        return programs.answer(*command)
    except programs.NoAnswer as error:
        raise CampaignError(f"Slurm does not answer: {error}") from error
