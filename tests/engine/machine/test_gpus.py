"""Jobs of one machine spread over its GPUs, and what a dead job held is free again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CLAIM = """
import sys
from pathlib import Path
from engine.machine.gpus import claim
print(claim(Path(sys.argv[1]), int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


def job(folder: Path, count: int) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_jobs_take_the_gpu_with_the_fewest(tmp_path):
    found = [job(tmp_path, 2) for _ in range(5)]
    try:
        assert [gpu for _, gpu in found] == [0, 1, 0, 1, 0]
        found[1][0].kill()
        found[1][0].wait()
        again = job(tmp_path, 2)
        found.append(again)
        assert again[1] == 1
    finally:
        for process, _ in found:
            process.kill()
            process.wait()
