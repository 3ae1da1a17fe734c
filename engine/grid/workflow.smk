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


def planned(place, *path):
    """What the file says of a job, as a function of the job's name."""

    def of(wildcards):
        value = grids[place][wildcards.job]
        for key in path:
            value = value[key]
        return value

    return of


def before(place):
    """Markers of the jobs that a job waits for."""
    return lambda wildcards: [marker(place, name) for name in grids[place][wildcards.job]["after"]]


def resources_of(place):
    """Snakemake's resources of a job; an attempt after a failure may take longer."""

    def amount(name):
        def of(wildcards, attempt):
            once = grids[place][wildcards.job]["resources"].get(name, 0)
            return once * attempt if name == "runtime" else once

        return of

    names = set().union(*(job["resources"] for job in grids[place].values())) - {"threads"}
    return {name: amount(name) for name in names}


rule all:
    input:
        [marker(place, name) for place, jobs in grids.items() for name in jobs]


# A rule a stage, by whose name a profile can say more of its jobs: column, or column_1 in the second
# grid.
for number, (place, jobs) in enumerate(grids.items()):
    for stage in dict.fromkeys(job["stage"] for job in jobs.values()):

        rule:
            name:
                stage + (f"_{number}" if number else "")
            input:
                before(place)
            output:
                touch(marker(place, "{job}"))
            log:
                str(Path(place, "logs", "{job}.log"))
            wildcard_constraints:
                job=f"{stage}(-[^/]+)?"
            priority: planned(place, "priority")
            threads: planned(place, "resources", "threads")
            resources:
                **resources_of(place)
            params:
                command=planned(place, "command")
            shell:
                JOB
