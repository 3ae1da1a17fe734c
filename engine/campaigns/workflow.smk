# A campaign's jobs: `prepare` for all columns, one job per column, the distances, the report. Cells and
# predictions are artefacts with their own markers and are not outputs here, so Snakemake deletes
# none after an interruption: a job that runs again reuses them.
import json
import os
import shlex
import sys
from pathlib import Path

from engine.campaigns.retries import minutes
from engine.campaigns.plan_folder import PlanFolder

envvars: "RIB_WORKFLOW"

# Each campaign's columns, program and resources, by the folder of its plan. Folders are relative to
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


def job(stage, wildcards):
    return f"column-{wildcards.column}" if stage == "column" else stage


def command(stage):
    """The job's program in its folder, with the job's name as last argument."""

    def line(wildcards):
        grid, name = GRIDS[wildcards.grid], job(stage, wildcards)
        of_job = (str(Path(wildcards.grid).absolute()), name)
        program = shlex.join([*ATTEMPT, *of_job, *grid["program"], name])
        return f"{shlex.join(['cd', grid['folder']])} && {program}"

    return line


def resources_of(stage):
    """The resources of a job. Attempts after a failure request more time."""

    def amount(name):
        def of(wildcards, attempt):
            once = GRIDS[wildcards.grid]["resources"][stage].get(name, 0)
            if name != "runtime":
                return once
            place = PlanFolder(Path(wildcards.grid).absolute())
            return minutes(place, job(stage, wildcards), once, attempt)

        return of

    asked = {name for grid in GRIDS.values() for name in grid["resources"][stage]}
    return {name: amount(name) for name in asked - {"threads"}}


def threads_of(stage):
    return lambda wildcards: GRIDS[wildcards.grid]["resources"][stage]["threads"]


wildcard_constraints:
    column="[^/]+",


rule all:
    input:
        expand("{grid}/done/report", grid=GRIDS),


rule prepare:
    output:
        "{grid}/done/prepare",
    log:
        "{grid}/logs/prepare.log",
    threads: threads_of("prepare")
    resources:
        **resources_of("prepare"),
    params:
        command=command("prepare"),
    shell:
        JOB


rule column:
    input:
        "{grid}/done/prepare",
    output:
        "{grid}/done/column-{column}",
    log:
        "{grid}/logs/column-{column}.log",
    threads: threads_of("column")
    resources:
        **resources_of("column"),
    params:
        command=command("column"),
    shell:
        JOB


rule distances:
    input:
        "{grid}/done/prepare",
    output:
        "{grid}/done/distances",
    log:
        "{grid}/logs/distances.log",
    threads: threads_of("distances")
    resources:
        **resources_of("distances"),
    params:
        command=command("distances"),
    shell:
        JOB


rule report:
    input:
        "{grid}/done/distances",
        lambda wildcards: expand(
            "{grid}/done/column-{column}",
            grid=wildcards.grid,
            column=GRIDS[wildcards.grid]["columns"],
        ),
    output:
        "{grid}/done/report",
    log:
        "{grid}/logs/report.log",
    threads: threads_of("report")
    resources:
        **resources_of("report"),
    params:
        command=command("report"),
    shell:
        JOB
