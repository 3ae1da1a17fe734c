# The grid as a workflow: what every column shares, then the columns, then the report.
# Cells and predictions are artefacts with markers of their own and are not declared here, so that
# an interruption deletes nothing: a job that runs again finds what it had finished.
import json
from pathlib import Path

plan = json.loads(Path(config["plan"]).read_text())
done = Path(config["plan"]).parent / "done"


def job(stage, *words):
    # -P: the working folder is the user's and may hold packages of our names
    return [plan["python"], "-P", "-m", "engine.cli", stage, "--plan", config["plan"], *words]


def run_job(command, threads):
    import os
    import subprocess

    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "RIB_PROGRESS": "off"}
    subprocess.run(command, check=True, env=environment, cwd=plan["cwd"])


rule all:
    input:
        done / "report"

rule prepare:
    output:
        touch(done / "prepare")
    threads: workflow.cores
    run:
        run_job(job("prepare"), threads)

rule column:
    input:
        done / "prepare"
    output:
        touch(done / "column-{name}")
    threads: plan["threads"]
    run:
        run_job(job("column", "--set", wildcards.name), threads)

rule report:
    input:
        expand(str(done / "column-{name}"), name=plan["sets"])
    output:
        touch(done / "report")
    threads: workflow.cores
    run:
        run_job(job("report"), threads)
