# The grid as a workflow: what every column shares, then the columns, then the report.
# Cells and predictions are artefacts with markers of their own and are not declared here, so that
# an interruption deletes nothing: a job that runs again finds what it had finished.
import json
from pathlib import Path

plan = json.loads(Path(config["plan"]).read_text())
done = Path(config["plan"]).parent / "done"
# -P: the working folder is the user's and may hold packages of our names; :q quotes for the shell.
# glibc reads its tunables as a program starts: malloc asks for huge pages, a tenth of a CPU's time.
JOB = (
    "cd {plan[cwd]:q} && OMP_NUM_THREADS={threads} RIB_PROGRESS=off "
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 "
    "{plan[python]:q} -P -m engine.commands.job {rule} --plan {config[plan]:q}"
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
        JOB + " --column {wildcards.name:q}"

rule report:
    input:
        expand(str(done / "column-{name}"), name=[column["name"] for column in plan["columns"]])
    output:
        touch(done / "report")
    threads: workflow.cores
    shell:
        JOB
