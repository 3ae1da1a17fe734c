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
# The last line tells how a job ended, which Snakemake does not. Code 2 is an error of the user's (see
# engine/machine/entry.py), in which another attempt would end too. Snakemake deletes the log before
# that, so a copy stays, and the attempt ends with it at once.
JOB = (
    "if test -f {params.user_error:q}; then cp {params.user_error:q} {log:q}; exit 2; fi; "
    "(export OMP_NUM_THREADS={threads} RIB_PROGRESS=off GLIBC_TUNABLES=glibc.malloc.hugetlb=1; "
    "{params.command}) > {log:q} 2>&1 || (code=$?; echo \"exit code $code\" >> {log:q}; "
    "test $code != 2 || cp {log:q} {params.user_error:q}; exit $code)"
)
FINAL_MIN = 5  # for an attempt that ends at once, so that Slurm fits it in beside longer jobs


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


def user_error(place):
    """The copy of its log that a job leaves which ended in an error of the user's."""
    return lambda wildcards: str(Path(place, "logs", f"{wildcards.job}.user-error"))


def resources_of(place):
    """Snakemake's resources of a job; an attempt after a failure may take longer."""

    def amount(name):
        def of(wildcards, attempt):
            once = grids[place][wildcards.job]["resources"].get(name, 0)
            if name != "runtime":
                return once
            is_final = Path(user_error(place)(wildcards)).is_file()
            return min(once, FINAL_MIN) if is_final else once * attempt

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
                command=planned(place, "command"),
                user_error=user_error(place),
            shell:
                JOB
