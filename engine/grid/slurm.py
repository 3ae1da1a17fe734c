"""A campaign on Slurm: what its cluster offers, how jobs get into the queue and out of it."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import CampaignError
from engine.grid import sites
from engine.grid.resources import Resources
from engine.grid.sites import Site
from engine.machine.slurm import ANSWER_S, MIN_JOB_AGE_S

PLUGIN = "snakemake_executor_plugin_slurm"
FIRST_CHECK_S, CHECK_S = 10, 5  # after a submission; between two looks at the queue, at first
LATENCY_S = 60  # until a file that a node wrote is seen by the others
RUN_ID = re.compile(r"SLURM run ID: (\S+)")


@dataclass(frozen=True)
class Options:
    """What a user asks of Slurm; empty: Slurm's own default."""

    partition: str = ""
    account: str = ""
    gpus_per_job: int = 1
    requeue: bool = False
    retries: int = 2


@dataclass(frozen=True)
class Cluster:
    """has_gpus: on some node of the partition. accounting: there is a slurmdbd, which `sacct` asks.

    remembers_s: how long `squeue` still knows a job that has ended.
    """

    has_gpus: bool
    accounting: bool
    remembers_s: int


def cluster(partition: str) -> Cluster:
    """What the cluster of this machine says of itself.

    Raises CampaignError where Snakemake's plugin or Slurm's commands are missing, where Slurm does
    not answer, or has no such partition.
    """
    if importlib.util.find_spec(PLUGIN) is None:
        raise CampaignError(
            "--executor slurm needs Snakemake's plugin: pip install snakemake-executor-plugin-slurm"
        )
    if shutil.which("sbatch") is None:
        raise CampaignError(
            "--executor slurm: there is no sbatch on this machine; use a login node"
        )
    of_partition = ["--partition", partition] if partition else []
    offers = _answer("sinfo", "--noheader", "--format", "%G", *of_partition)
    if partition and not offers.strip():
        raise CampaignError(f"--partition {partition}: Slurm has none of that name (see sinfo)")
    settings = dict(re.findall(r"^(\w+) *= *(.*)$", _answer("scontrol", "show", "config"), re.M))
    return Cluster(
        has_gpus="gpu" in offers,
        accounting="slurmdbd" in settings.get("AccountingStorageType", ""),
        remembers_s=int(re.match(r"\d*", settings.get("MinJobAge", ""))[0] or 0),  # type: ignore[index]
    )


def device(chosen: str, cluster: Cluster) -> str:
    """The device of the jobs; `auto` takes GPUs where the partition has some.

    Raises ValueError for `cuda` where it has none.
    """
    if chosen == "cuda" and not cluster.has_gpus:
        raise ValueError(
            "device=cuda, but no node of the partition has GPUs; see sinfo --Format=gres"
        )
    return "cpu" if chosen == "cpu" or not cluster.has_gpus else "cuda"


def site(
    options: Options, cluster: Cluster, device: str, needs: Mapping[str, Resources], place: Path
) -> Site:
    """The site of a campaign whose plan is in the folder `place`.

    Where there is no slurmdbd `squeue` is asked for the state of jobs: the plugin would wait for
    ever for an answer of `sacct`. It must ask before Slurm forgets a job that has ended, or it
    would wait for ever, too.
    """
    sites.check_gpus(device, options.gpus_per_job)
    if not cluster.accounting and cluster.remembers_s < MIN_JOB_AGE_S:
        raise CampaignError(
            f"Slurm forgets a finished job after {cluster.remembers_s} s (MinJobAge) and has no "
            "slurmdbd, so nobody can tell how a job ended; run the campaign inside an allocation "
            "(sbatch -N1 -c8 --wrap 'rib campaign NAME'), or have MinJobAge set to 300"
        )
    given, environment = {"slurm_partition": options.partition}, {}
    if cluster.accounting:
        given["slurm_account"] = options.account
    elif options.account:  # the plugin would ask the accounting whether there is such an account
        environment["SBATCH_ACCOUNT"] = options.account
    # Snakemake takes a resource for an expression of Python, so that `max` would be a function.
    defaults = [f"{name}={value!r}" for name, value in given.items() if value]
    words = [
        *("--executor", "slurm", "--retries", str(options.retries)),
        *("--latency-wait", str(LATENCY_S), "--seconds-between-status-checks", str(CHECK_S)),
        *("--slurm-init-seconds-before-status-checks", str(FIRST_CHECK_S)),
        *("--slurm-status-command", "sacct" if cluster.accounting else "squeue"),
        *("--slurm-logdir", str(place / "slurm")),
        *("--default-resources", *defaults),
        "--slurm-requeue" if options.requeue else "--slurm-no-requeue",
    ]
    ranks = options.gpus_per_job
    return Site(device, needs, tuple(words), ranks, on_slurm=True, environment=environment)


def cancel(log: str) -> None:
    """Empty the queue of the jobs that this log of Snakemake's submitted."""
    for run in RUN_ID.findall(log):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # Snakemake has tried as well
            command = ["scancel", "--name", run]
            subprocess.run(command, capture_output=True, timeout=ANSWER_S, check=False)


def _answer(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CampaignError(f"Slurm does not answer: {error}") from error
    if done.returncode:
        raise CampaignError(f"Slurm does not answer: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
