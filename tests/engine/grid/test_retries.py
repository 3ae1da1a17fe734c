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
from pathlib import Path

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
def test_a_job_tells_by_its_code_whether_another_attempt_can_help(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def fail(arguments: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(job, "run", fail)
    monkeypatch.setattr(sys, "argv", ["job", "report", "--plan", "plan.json"])
    assert job.main() == code
    assert capfd.readouterr().err == f"error: {error}\n"


@pytest.mark.slow
def test_users_errors_end_their_next_attempts_at_once(folder: Path, tmp_path: Path) -> None:
    """Those do not run the job and ask for little time; of the others the last words are told."""
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 1)
    columns = tuple(Column(name, name) for name in ENDS)
    plan = dataclasses.replace(plan, columns=columns)
    place = plan.place
    script = place / "job.sh"
    lines = [f"{name}) {end} ;;" for name, end in ENDS.items()]
    write_atomic(
        script,
        "\n".join(
            [
                f"echo begun >> {place}/$1; test $1 = prepare && exit 0",
                f"echo error: of $(wc -l < {place}/$1)",
                "case ${1#column-} in",
                *lines,
                "esac",
            ]
        ).encode(),
    )
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
    found = re.findall(r"wildcards: grid=\S+, column=(\S+)\n.*?runtime=(\d+)", done.stderr, re.S)
    for name, runtime in found:
        minutes[name].append(int(runtime))
    longer = [HOUR, 2 * HOUR, 3 * HOUR]
    assert minutes == {name: longer for name in ENDS} | {"user-error": [HOUR, 5, 5]}
    told = dict(outcomes.failures(plan))
    assert outcomes.is_done(place, "prepare") and "prepare" not in told
    assert told["column-user-error"].startswith("column-user-error failed (exit code 2)")
    assert "goes on from its last checkpoint" in told["column-preempted"]
    assert "was killed (SIGKILL), as the kernel does where" in told["column-killed"]
    assert all(f"{place}/logs/{job}.log" in text for job, text in told.items())
    outcomes.begin(plan)  # the next command tries all of them again
    assert not list((place / "logs").glob("column-*"))


def test_a_jobs_own_words_are_told(folder: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("TIMEOUT", "was ended by Slurm: TIMEOUT (give more hours by --time)"),
        ("OUT_OF_MEMORY", "was ended by Slurm: OUT_OF_MEMORY (give more by --mem)"),
        ("FAILED", "was killed (SIGKILL)"),
    ],
)
def test_slurms_state_of_a_killed_job_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, told: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    kill = attempts.recorded(tmp_path, "column-few", "column", 3)
    kill.__enter__()
    monkeypatch.setattr(slurm, "state", {"17": state}.get)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "column-few.exit").write_text("137\n")
    assert outcomes.reason(tmp_path, "column-few").startswith(told)
    (tmp_path / "logs" / "column-few.exit").unlink()
    assert outcomes.reason(tmp_path, "column-few").startswith("was ")


def test_a_job_without_memory_is_told_by_slurms_words_in_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a log" / "4.log"
    output.parent.mkdir()
    output.write_text("slurmstepd: error: Exceeded job memory limit\n")
    job = f"JobId=4 JobName=x\n   JobState=FAILED Reason=NonZeroExitCode\n   StdOut={output}\n"
    monkeypatch.setattr(slurm, "_answer", lambda *_: job)
    assert slurm.state("4") == "OUT_OF_MEMORY"
    output.write_text("error: x\n")
    assert slurm.state("4") == "FAILED"
