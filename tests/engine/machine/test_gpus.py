"""Jobs of one machine spread over its GPUs, and what a dead job held is free again."""

import subprocess
import sys
from pathlib import Path

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
