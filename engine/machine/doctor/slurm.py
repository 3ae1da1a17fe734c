"""Slurm: its queue, its accounting, and Snakemake's plugin. On other machines none is needed."""

from __future__ import annotations

import importlib.util
import re
import shutil

from engine.machine.doctor.diagnosis import MISSING, OK, WRONG, Diagnosis
from engine.machine.doctor.programs import NoAnswer, answer
from engine.machine.slurm import MIN_JOB_AGE_S

PLUGIN = "snakemake_executor_plugin_slurm"
UNCONFIGURED = "configuration source"  # what Slurm's programs lack on a machine of no cluster
NONE = Diagnosis(MISSING, "not on a cluster's node", "use a login node", needed=False)
RESTART = "ask the cluster's administrator whether slurmctld runs"


def queue() -> Diagnosis:
    """Whether Slurm answers, and its partitions."""
    if shutil.which("sinfo") is None:
        return NONE
    try:
        partitions = answer("sinfo", "--noheader", "--format", "%R").split()
    except NoAnswer as error:
        return _failed(error, RESTART)
    if not partitions:
        return Diagnosis(WRONG, "sinfo names no partition", RESTART)
    return Diagnosis(OK, f"partitions {', '.join(dict.fromkeys(partitions))}")


def accounting() -> Diagnosis:
    """Who tells how a job ended: sacct where there is a slurmdbd, else squeue."""
    if shutil.which("sinfo") is None:
        return NONE
    try:
        settings = dict(re.findall(r"^(\w+) *= *(.*)$", answer("scontrol", "show", "config"), re.M))
        if "slurmdbd" in settings.get("AccountingStorageType", ""):
            answer("sacct", "--noheader", "--allocations", "--format", "JobID")
            return Diagnosis(OK, "slurmdbd answers")
    except NoAnswer as error:
        return _failed(error, "ask the cluster's administrator whether slurmdbd runs")
    age = settings.get("MinJobAge", "0")
    if int(re.match(r"\d*", age)[0] or 0) < MIN_JOB_AGE_S:  # type: ignore[index]
        return Diagnosis(
            WRONG, f"no slurmdbd, and jobs are forgotten after {age}", "MinJobAge=300 in slurm.conf"
        )
    return Diagnosis(OK, f"no slurmdbd; squeue is asked, which remembers a job for {age}")


def plugin() -> Diagnosis:
    """Snakemake's executor for Slurm, which is needed where there is a Slurm."""
    if importlib.util.find_spec(PLUGIN) is not None:
        return Diagnosis(OK, "installed")
    cure = "pip install 'snakemake-executor-plugin-slurm>=2.8,<3'"
    return Diagnosis(MISSING, "not installed", cure, needed=queue().state == OK)


def _failed(error: NoAnswer, cure: str) -> Diagnosis:
    return NONE if UNCONFIGURED in str(error) else Diagnosis(WRONG, str(error), cure)
