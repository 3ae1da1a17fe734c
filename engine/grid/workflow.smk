# The jobs of one or more grids as a workflow; what a job waits for, asks for and runs stands in a
# file. Cells and predictions are artefacts with markers of their own and are not declared here, so
# that an interruption deletes nothing: a job that runs again finds what it had finished.
import json
import os
from pathlib import Path

envvars: "RIB_WORKFLOW"

# By the folder of its plan, each grid's jobs by name. Folders are relative to Snakemake's: the path
# to that may hold its wildcards' braces.
grids = json.loads(Path(os.environ["RIB_WORKFLOW"]).read_text())
# glibc reads its tunables as a program starts: malloc asks for huge pages, a tenth of a CPU's time.
# The last line tells how a job ended, which Snakemake does not.
JOB = (
    "(export OMP_NUM_THREADS={threads} RIB_PROGRESS=off GLIBC_TUNABLES=glibc.malloc.hugetlb=1; "
    "{params.command}) > {log:q} 2>&1 || (code=$?; echo \"exit code $code\" >> {log:q}; exit $code)"
)


def marker(place, name):
    return str(Path(place, "done", name))


def constant(value):
    """As a function, whose result Snakemake does not search for wildcards."""
    return lambda wildcards: value


def resources_of(job):
    """Snakemake's resources of a job; an attempt after a failure may take longer."""
    amounts = {name: value for name, value in job["resources"].items() if name != "threads"}
    if runtime := amounts.get("runtime"):
        amounts["runtime"] = lambda wildcards, attempt: runtime * attempt
    return amounts


rule all:
    input:
        [marker(place, name) for place, jobs in grids.items() for name in jobs]


for grid, (place, jobs) in enumerate(grids.items()):
    for number, (name, job) in enumerate(jobs.items()):

        rule:
            name:
                f"{job['stage']}_{grid}_{number}"
            input:
                [marker(place, other) for other in job["after"]]
            output:
                touch(marker(place, name))
            log:
                str(Path(place, "logs", f"{name}.log"))
            priority: job["priority"]
            threads: job["resources"]["threads"]
            resources:
                **resources_of(job)
            params:
                command=constant(job["command"])
            shell:
                JOB
