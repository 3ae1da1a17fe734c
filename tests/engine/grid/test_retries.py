"""Which failed jobs are tried again: all but those that end with the code of a user's error."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys

import campaigns
import pytest

from engine.commands import job
from engine.errors import DivergedError, FirstRankError, RecipeError
from engine.grid import attempts, campaign, outcomes, slurm, workflow
from engine.grid.columns import Column
from engine.machine.files import write_atomic

folder = campaigns.folder
ENDS = {"user-error": "exit 2", "bug": "exit 1", "preempted": "exit 75", "killed": "kill -KILL $$"}
HOUR = 60


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("no such key"), 2),
        (ValueError("no such value"), 2),
        (DivergedError("the loss is not finite"), 2),
        (TimeoutError("the file system does not answer"), 74),
        (BrokenPipeError("a worker left"), 74),
        (FirstRankError("the first rank failed"), 74),
    ],
)
def test_a_job_tells_by_its_code_whether_another_attempt_can_help(error, code, monkeypatch, capfd):
    def fail(arguments: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(job, "run", fail)
    monkeypatch.setattr(sys, "argv", ["job", "report", "--plan", "plan.json"])
    assert job.main() == code
    assert capfd.readouterr().err == f"error: {error}\n"


@pytest.mark.slow
def test_users_errors_end_their_next_attempts_at_once(folder, tmp_path):
    """They do not run the job and ask for little time; of the others the last words are told."""
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 1)
    plan = dataclasses.replace(plan, columns=tuple(Column(name, name) for name in ENDS))
    place, script = plan.place, plan.place / "job.sh"
    lines = [f"{name}) {end} ;;" for name, end in ENDS.items()]
    begin = f"echo begun >> {place}/$1; test $1 = prepare && exit 0"
    text = "\n".join([begin, "case ${1#column-} in", *lines, "esac"])
    write_atomic(script, text.encode())
    stage = {"threads": 1, "runtime": HOUR}
    settings = {
        "columns": list(ENDS), "command": f"sh {shlex.quote(str(script))}",
        "resources": {name: stage for name in ("prepare", "column", "report")},
    }  # fmt: skip
    file = place / workflow.FILE
    file.write_text(json.dumps({place.name: settings}))
    command = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(workflow.WORKFLOW)]
    words = ["--directory", str(place.parent), "--cores", "1", "--retries", "2", "--keep-going"]
    done = subprocess.run(
        [*command, *words], env=os.environ | {workflow.JOBS: str(file)}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    attempts = {name: len((place / f"column-{name}").read_text().split()) for name in ENDS}
    assert attempts == {"user-error": 1, "bug": 3, "preempted": 3, "killed": 3}, done.stderr
    minutes: dict[str, list[int]] = {name: [] for name in ENDS}
    asked = re.findall(r"wildcards: grid=\S+, column=(\S+)\n.*?runtime=(\d+)", done.stderr, re.S)
    for name, runtime in asked:
        minutes[name].append(int(runtime))
    assert minutes == {n: [HOUR, 2 * HOUR, 3 * HOUR] for n in ENDS} | {"user-error": [HOUR, 5, 5]}
    told = dict(outcomes.failures(plan))
    assert outcomes.is_done(place, "prepare") and "prepare" not in told
    assert told["column-user-error"].startswith("column-user-error failed (exit code 2)")
    assert "goes on from its last checkpoint" in told["column-preempted"]
    assert "was killed (SIGKILL), as the kernel does where" in told["column-killed"]
    assert all(f"{place}/logs/{job}.log" in text for job, text in told.items())
    outcomes.begin(plan)  # the next command tries all of them again
    assert not list((place / "logs").glob("column-*"))


def test_a_jobs_own_words_are_told(folder, tmp_path):
    """Of its last attempt; what left none was killed, and Slurm says by what."""
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 1)
    for started, words in ((1, "no room"), (2, "no GPU")):
        with (
            contextlib.suppress(ValueError),
            attempts.recorded(plan.place, "column-few", "column", started),
        ):
            raise ValueError(words)
    assert dict(outcomes.failures(plan)) == {
        "column-few": "column-few failed\n  last words: no GPU"
    }
    (plan.place / "logs").mkdir()
    (plan.place / "logs" / "column-few.exit").write_text("2\n")
    assert "failed (exit code 2)\n  last words: no GPU" in outcomes.reason(plan.place, "column-few")


def test_slurms_state_of_a_killed_job_is_told(tmp_path, monkeypatch):
    """Its own words, and where it has no accounting what the job's output says of memory."""
    output, exit_code = tmp_path / "4.log", tmp_path / "logs" / "column-few.exit"
    exit_code.parent.mkdir()
    exit_code.write_text("137\n")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    kill = attempts.recorded(tmp_path, "column-few", "column", 3)
    kill.__enter__()
    for state, text, reason in (
        ("TIMEOUT", "", "was ended by Slurm: TIMEOUT (give more hours by --time)"),
        ("FAILED", "Exceeded job memory limit", "OUT_OF_MEMORY (give more by --mem)"),
        ("FAILED", "error: x", "was killed (SIGKILL), as the kernel does where memory runs out"),
    ):
        output.write_text(f"slurmstepd: error: {text}\n")
        job = f"JobId=17 JobName=x\n   JobState={state} Reason=x\n   StdOut={output}\n"
        monkeypatch.setattr(slurm, "_answer", lambda *_, job=job: job)
        assert outcomes.reason(tmp_path, "column-few").endswith(reason)
    exit_code.unlink()
    assert outcomes.reason(tmp_path, "column-few").startswith("was ")
