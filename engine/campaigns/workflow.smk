# A campaign's jobs: `prepare` for all columns, one job per column, the distances, the report. Cells and
# predictions are artefacts with their own markers and are not outputs here, so Snakemake deletes
# none after an interruption: a job that runs again reuses them.
import json
import os
import shlex
import sys
from pathlib import Path

envvars: "RIB_WORKFLOW"

# Each campaign's columns, program and resources, by the folder of its plan. Folders are relative to
# Snakemake's: braces in its path would be wildcards.
GRIDS = json.loads(Path(os.environ["RIB_WORKFLOW"]).read_text("utf-8"))
# Huge pages for malloc save a tenth of the time on a CPU. glibc reads the variable at start.
# Exit code 2 means that another attempt would fail in the same way; 0, that the job ended without
# its result.
JOB = (
    "if test \"$(cat {params.exit:q} 2>/dev/null)\" = 2; then exit 2; fi; rm -f {params.exit:q}; "
    "export OMP_NUM_THREADS={threads} RIB_PROGRESS=off GLIBC_TUNABLES=glibc.malloc.hugetlb=1; "
    "code=0; {params.command} || code=$?; if test $code = 0 -a -e {output:q}; then exit 0; fi; "
    "echo $code > {params.exit:q}; exit $(( code ? code : 1 ))"
)
# Runs a program with a log. The log's path and the program follow as arguments.
LOGGED = (sys.executable, "-P", "-m", "engine.machine.limited_log")
FINAL_MIN = 5  # minutes for an attempt that ends at once; Slurm starts short jobs sooner


def exit_file(stage):
    return lambda wildcards: str(Path(wildcards.grid, "logs", f"{job(stage, wildcards)}.exit"))


def job(stage, wildcards):
    return f"column-{wildcards.column}" if stage == "column" else stage


def command(stage):
    """The job's program in its folder, with the job's name as last argument."""

    def line(wildcards):
        grid, name = GRIDS[wildcards.grid], job(stage, wildcards)
        log = Path(wildcards.grid, "logs", f"{name}.log").absolute()
        program = shlex.join([*LOGGED, str(log), *grid["program"], name])
        return f"( {shlex.join(['cd', grid['folder']])} && {program} )"

    return line


def resources_of(stage):
    """The resources of a job. Attempts after a failure request more time."""

    def amount(name):
        def of(wildcards, attempt):
            once = GRIDS[wildcards.grid]["resources"][stage].get(name, 0)
            if name != "runtime":
                return once
            file = Path(exit_file(stage)(wildcards))
            is_final = file.is_file() and file.read_text("utf-8").strip() == "2"
            return min(once, FINAL_MIN) if is_final else once * attempt

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
        exit=exit_file("prepare"),
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
        exit=exit_file("column"),
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
        exit=exit_file("distances"),
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
        exit=exit_file("report"),
    shell:
        JOB
