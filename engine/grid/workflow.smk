# The grid as a workflow: what every column shares, then the columns, then the report.
# Cells and predictions are artefacts with markers of their own and are not declared here, so that
# an interruption deletes nothing: a job that runs again finds what it had finished.
import json
import os
from pathlib import Path

envvars: "RIB_PLAN"

plan = json.loads(Path(os.environ["RIB_PLAN"]).read_text())
# Beside the plan, in Snakemake's folder: a path may hold its wildcards' braces.
done, logs = Path("done"), Path("logs")
# glibc reads its tunables as a program starts: malloc asks for huge pages, a tenth of a CPU's time.
# The last line tells how a job ended, which Snakemake does not.
JOB = (
    "(export OMP_NUM_THREADS={threads} RIB_PROGRESS=off GLIBC_TUNABLES=glibc.malloc.hugetlb=1; "
    "{params.command}) > {log:q} 2>&1 || (code=$?; echo \"exit code $code\" >> {log:q}; exit $code)"
)


def planned(part, job):
    """Of a job's resources or commands in the plan, by the job's name."""
    return lambda wildcards: plan[part][job.format(**dict(wildcards))]


def threads_of(job):
    return lambda wildcards: planned("resources", job)(wildcards)["threads"]


def resources_of(job):
    """Snakemake's resources of a job; an attempt after a failure may take longer."""

    def amount(name):
        def of(wildcards, attempt):
            once = planned("resources", job)(wildcards).get(name, 0)
            return once * attempt if name == "runtime" else once

        return of

    names = set().union(*plan["resources"].values()) - {"threads"}
    return {name: amount(name) for name in names}


rule all:
    input:
        done / "report"

rule prepare:
    output:
        touch(done / "prepare")
    log:
        logs / "prepare.log"
    threads: threads_of("prepare")
    resources: **resources_of("prepare")
    params:
        command=planned("commands", "prepare")
    shell:
        JOB

rule column:
    input:
        done / "prepare"
    output:
        touch(done / "column-{name}")
    log:
        logs / "column-{name}.log"
    threads: threads_of("column-{name}")
    resources: **resources_of("column-{name}")
    params:
        command=planned("commands", "column-{name}")
    shell:
        JOB

rule report:
    input:
        expand(str(done / "column-{name}"), name=[column["name"] for column in plan["columns"]])
    output:
        touch(done / "report")
    log:
        logs / "report.log"
    threads: threads_of("report")
    resources: **resources_of("report")
    params:
        command=planned("commands", "report")
    shell:
        JOB
