"""The ranks of the tests that need two: they train cells as `launch.py` would, some interrupted.

rank_worker.py FOLDER JOBS RESULTS RANKS. JOBS is a JSON list of {"runs", "words", "how", "step",
"after"}; how: `stop` raises before that optimizer step on every rank, `term` sends SIGTERM to the
last rank alone, `evaluate` evaluates the cell, `clip` compares clipped gradients with DeepSpeed's,
`part` measures a rank's part of an optimizer with `train.zero`; after: where checkpoints are copied
from first. Rank 0 writes a JSON list: for each job the cell's folder and the steps that it took, or
the message that ended or refused it, or the largest difference or part on any rank. The exit code
is that of every rank.

One process imports all that the ranks need, and then forks them: imports take most of the time.
`commands/test_launch.py` and `test_job.py` start ranks as users do.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import PreemptedError
from engine.evaluation import passes
from engine.machine import entry, ranks
from engine.machine.terminal import quiet_libraries
from helpers import clipping, parts, processes
from helpers.grids import SETS, Grid
from helpers.interruptions import EVERY_STEP, at_step, interrupted, resumed
from helpers.processes import ROOT


def result(folder: Path, device: torch.device, job: dict[str, Any]) -> list[Any]:
    if job.get("how") == "clip":
        return [ranks.most(max(clipping.differences()))]
    if job.get("how") == "part":
        return [ranks.most(parts.part_of_rank())]
    grid, words, how = Grid(folder, Path(job["runs"]), device), job["words"], job.get("how")
    if "after" in job:
        if ranks.rank() == 0:
            before, here = (Path(runs) / "store" / "pending" for runs in (job["after"], grid.runs))
            shutil.copytree(before, here, dirs_exist_ok=True)
        ranks.all_agree(True)
    if how == "stop":
        interrupted(grid.builder(EVERY_STEP, *words), job["step"])
        return ["stopped"]
    with pytest.MonkeyPatch.context() as patch:
        if how == "term" and ranks.rank() == ranks.world() - 1:
            at_step(patch, job["step"], lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            cell, steps = resumed(grid, *words)
        except ValueError as error:
            return [str(error)]
    if how == "evaluate":
        builder = grid.builder(*words)
        mix = {builder.base.name: 0.5, cell.name: 0.5}
        passes.evaluate(builder, [{cell.name: 1.0}, mix], SETS, "all")
    return [str(cell.artifact.folder), steps]


def run(
    grid: Grid, folder: Path, jobs: list[dict[str, Any]], ranks: int
) -> tuple[subprocess.CompletedProcess[str], list[list[Any]]]:
    """The process after its end, and its results."""
    paths = folder / "jobs.json", folder / "results.json"
    paths[0].write_text(json.dumps(jobs, default=str))
    command = [sys.executable, __file__, *map(str, (grid.folder, *paths, ranks))]
    process = processes.run(command, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert paths[1].is_file(), process.stderr[-3000:]
    return process, json.loads(paths[1].read_text())


def main() -> int:
    *paths, world = sys.argv[1:]
    torch.set_num_threads(1)
    quiet_libraries()
    shared, started = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RIB_LAUNCH": "1"}, []
    for rank in map(str, range(int(world))):
        if (child := os.fork()) == 0:
            os.environ |= {**shared, "RANK": rank, "LOCAL_RANK": rank}
            return entry.guarded(lambda: work(*map(Path, paths)))
        started.append(child)
    codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started}
    assert len(codes) == 1, codes
    return codes.pop()


def work(folder: Path, jobs: Path, results: Path) -> None:
    device, outcomes = ranks.start("cpu"), []
    try:
        for job in json.loads(jobs.read_text(encoding="utf-8")):
            outcomes.append(result(folder, device, job))
    except PreemptedError as error:
        outcomes.append([str(error)])
        raise
    finally:
        if ranks.rank() == 0:
            results.write_text(json.dumps(outcomes), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    sys.exit(main())
