"""Jobs of one machine spread over its GPUs, and what a dead job held is free again."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from engine.machine import files
from helpers.processes import ROOT

CLAIM = """
import os, sys
from pathlib import Path
from engine.machine.gpus import claim
names = [f"GPU-{number}" for number in range(int(sys.argv[2]))]
print(*claim(names, int(sys.argv[3]), Path(sys.argv[1])), flush=True)
os.execvp("cat", ["cat"])  # a launcher that the job becomes
"""


def job(folder: Path, count: int, number: int) -> tuple[subprocess.Popen[str], list[int]]:
    command = [sys.executable, "-c", CLAIM, str(folder), str(count), str(number)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    return process, [int(word) for word in process.stdout.readline().split()]


def test_jobs_of_several_gpus_have_different_ones(tmp_path):
    """Those that fewest jobs hold; a job that was killed holds none."""
    jobs = [job(tmp_path, 3, count) for count in (1, 2, 2)]
    try:
        assert [gpus for _, gpus in jobs] == [[0], [1, 2], [0, 1]]
        jobs[1][0].kill()
        jobs[1][0].wait()
        jobs.append(job(tmp_path, 3, 3))
        assert jobs[-1][1] == [1, 2, 0]
    finally:
        for process, _ in jobs:
            process.kill()
            process.wait()


def test_claims_lie_in_a_folder_of_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = files.runtime_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="is not yours"):
        files.runtime_folder()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert files.runtime_folder() == tmp_path / "rib"
