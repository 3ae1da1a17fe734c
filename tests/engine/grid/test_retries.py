"""Which failed jobs are tried again: all but those that end with the code of a user's error."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.commands import job
from engine.errors import DivergedError, FirstRankError, RecipeError
from engine.grid import failures, workflow

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
def test_only_a_users_error_ends_the_next_attempts_at_once(tmp_path: Path) -> None:
    """Those do not run the job, ask for little time, and leave the log as it was."""

    def plain(name: str) -> dict:
        script = f"echo begun >> {name}; echo error: of $(wc -l < {name}); {ENDS[name]}"
        resources = {"threads": 1, "runtime": HOUR}
        command = shlex.join(["sh", "-c", script])
        return {
            "stage": name, "after": [], "command": command, "resources": resources, "priority": 0,
        }  # fmt: skip

    file = tmp_path / workflow.FILE
    file.write_text(json.dumps({".": {name: plain(name) for name in ENDS}}))
    command = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(workflow.WORKFLOW)]
    words = ["--directory", str(tmp_path), "--cores", "1", "--retries", "2", "--keep-going"]
    done = subprocess.run(
        [*command, *words], env=os.environ | {workflow.JOBS: str(file)}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    attempts = {name: len((tmp_path / name).read_text().split()) for name in ENDS}
    assert attempts == {"user-error": 1, "bug": 3, "preempted": 3, "killed": 3}, done.stderr
    minutes: dict[str, list[int]] = {name: [] for name in ENDS}
    for name, runtime in re.findall(r"wildcards: job=(\S+)\n.*?runtime=(\d+)", done.stderr, re.S):
        minutes[name].append(int(runtime))
    longer = [HOUR, 2 * HOUR, 3 * HOUR]
    assert minutes == {name: longer for name in ENDS} | {"user-error": [HOUR, 5, 5]}
    by_job = {
        failure.job: failure for failure in failures.failures(done.stderr, tmp_path, tmp_path)
    }
    assert by_job["user-error"].error == "error: of 1" and by_job["user-error"].code == 2
    assert by_job["bug"].error == "error: of 3" and by_job["killed"].code == 137
