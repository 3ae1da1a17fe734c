# The grid as a workflow: what every column shares, then the columns, then the report.
# Cells and predictions are artefacts with markers of their own and are not declared here, so that
# an interruption deletes nothing: a job that runs again finds what it had finished.
import json
import os
from pathlib import Path

envvars: "RIB_PLAN"

plan_path = os.environ["RIB_PLAN"]
plan = json.loads(Path(plan_path).read_text())
done = Path("done")  # beside the plan, in Snakemake's folder: a path may hold its wildcards' braces
# -P: the working folder is the user's and may hold packages of our names; :q quotes for the shell.
# glibc reads its tunables as a program starts: malloc asks for huge pages, a tenth of a CPU's time.
JOB = (
    "cd {plan[cwd]:q} && OMP_NUM_THREADS={threads} RIB_PROGRESS=off "
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 "
    "{plan[python]:q} -P -m engine.commands.job {rule} --plan {plan_path:q}"
)


rule all:
    input:
        done / "report"

rule prepare:
    output:
        touch(done / "prepare")
    threads: workflow.cores
    shell:
        JOB

rule column:
    input:
        done / "prepare"
    output:
        touch(done / "column-{name}")
    threads: plan["threads"]
    shell:
        JOB + " --set {wildcards.name:q}"

rule report:
    input:
        expand(str(done / "column-{name}"), name=plan["sets"])
    output:
        touch(done / "report")
    threads: workflow.cores
    shell:
        JOB
