"""One rank of `test_checkpoints.py`: trains cells, some of which are interrupted on the way.

interrupted_worker.py FOLDER JOBS RESULTS, by torchrun or alone. JOBS is a JSON list of
{"runs", "words", "step", "how"}: `stop` raises before that optimizer step on every rank, `term`
sends SIGTERM to the last rank alone, `kill` kills this process outright. Rank 0 writes a JSON list:
for each job the cell's folder and the steps that it took, or the message that ended it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import torch
from grids import Grid
from interruptions import EVERY_STEP, at_step, interrupted, resumed, unhurried

from engine.errors import PreemptedError
from engine.machine import entry, quiet, ranks


def result(folder: Path, device: torch.device, job: dict[str, Any]) -> list[Any]:
    grid, words = Grid(folder, Path(job["runs"]), device), job["words"]
    if job.get("how") == "stop":
        interrupted(grid, job["step"], *words)
        return ["stopped"]
    is_last = ranks.rank() == ranks.world() - 1
    with pytest.MonkeyPatch.context() as patch:
        if job.get("how") == "kill":
            unhurried(patch)
            at_step(patch, job["step"], lambda: os.kill(os.getpid(), signal.SIGKILL))
            words = [EVERY_STEP, *words]
        elif job.get("how") == "term" and is_last:
            at_step(patch, job["step"], lambda: os.kill(os.getpid(), signal.SIGTERM))
        cell, steps = resumed(grid, *words)
    return [str(cell.artifact.folder), steps]


def main() -> None:
    folder, jobs, results = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    quiet.libraries()
    device, outcomes = ranks.start("cpu"), []
    try:
        for job in json.loads(jobs.read_text()):
            outcomes.append(result(folder, device, job))
    except PreemptedError as error:
        outcomes.append([str(error)])
        raise
    finally:
        if ranks.rank() == 0:
            results.write_text(json.dumps(outcomes))
    ranks.stop()


if __name__ == "__main__":
    sys.exit(entry.guarded(main))
