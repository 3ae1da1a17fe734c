# A campaign's jobs: `prepare` for all columns, a job per column after those that do shares of its
# work, the distances, the report. Cells and predictions are artefacts with their own markers and are
# not outputs here, so Snakemake deletes none after an interruption: a job that runs again reuses them.
import json
import os
import shlex
import sys
from pathlib import Path

from engine.campaigns.retries import minutes
from engine.campaigns.plan_folder import PlanFolder

envvars: "RIB_WORKFLOW"

# Each campaign's jobs, program and resources, by the folder of its plan. Folders are relative to
# Snakemake's: braces in its path would be wildcards.
GRIDS = json.loads(Path(os.environ["RIB_WORKFLOW"]).read_text("utf-8"))
# Huge pages for malloc save a tenth of the time on a CPU. glibc reads the variable at start.
# torch.compile would start as many processes as the machine has cores, in each of several jobs.
JOB = (
    "export OMP_NUM_THREADS={threads} TORCHINDUCTOR_COMPILE_THREADS={threads} RIB_PROGRESS=off GLIBC_TUNABLES=glibc.malloc.hugetlb=1; "
    "{params.command}"
)
# Runs a job's program. The plan's folder, the job and the program follow as arguments.
ATTEMPT = (sys.executable, "-P", "-m", "engine.campaigns.retries")


def command(wildcards):
    """The job's program in its folder, with the job's name as last argument."""
    grid, name = GRIDS[wildcards.grid], wildcards.job
    of_job = (str(Path(wildcards.grid).absolute()), name)
    program = shlex.join([*ATTEMPT, *of_job, *grid["program"], name])
    return f"{shlex.join(['cd', grid['folder']])} && {program}"


def resources_of(stage):
    """The resources of a job. Attempts after a failure request more time."""

    def amount(name):
        def of(wildcards, attempt):
            once = GRIDS[wildcards.grid]["resources"][stage].get(name, 0)
            if name != "runtime":
                return once
            place = PlanFolder(Path(wildcards.grid).absolute())
            return minutes(place, wildcards.job, once, attempt)

        return of

    asked = {name for grid in GRIDS.values() for name in grid["resources"][stage]}
    return {name: amount(name) for name in asked - {"threads"}}


def threads_of(stage):
    return lambda wildcards: GRIDS[wildcards.grid]["resources"][stage]["threads"]


def needs_of(wildcards):
    """The markers of the jobs that end before a job. Of shares of a column, which may be made at
    another number of jobs after the column, the time does not count."""

    def marker(need):
        path = f"{wildcards.grid}/done/{need}"
        return ancient(path) if need.startswith(("train-", "evaluate-")) else path

    return [marker(need) for need in GRIDS[wildcards.grid]["needs"][wildcards.job]]


def priority_of(wildcards):
    """Of the jobs that could start, the one that most hours depend on does."""
    return GRIDS[wildcards.grid]["priorities"].get(wildcards.job, 0)


rule all:
    input:
        expand("{grid}/done/report", grid=GRIDS),


for stage in ("prepare", "train", "evaluate", "column", "distances", "report"):

    rule:
        name:
            stage
        wildcard_constraints:
            job=f"{stage}(-[^/]+)?",
        input:
            needs_of,
        output:
            "{grid}/done/{job}",
        log:
            "{grid}/logs/{job}.log",
        threads: threads_of(stage)
        priority: priority_of
        resources:
            **resources_of(stage),
        params:
            command=command,
        shell:
            JOB
