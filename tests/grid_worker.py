"""One rank of the tests that need two: builds cells and evaluates them, as `launch.py` would.

torchrun --nproc-per-node 2 grid_worker.py FOLDER RUNS JOBS RESULTS. JOBS is a JSON list of lists of
overrides. Rank 0 writes a JSON list: the folder of each cell, or the message of its refusal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from grids import SETS, Grid

from engine.evaluation import passes
from engine.machine import quiet, ranks


def result(grid: Grid, words: list[str]) -> str:
    try:
        builder, cell = grid.build(*words)
    except ValueError as error:
        return str(error)
    mix = {builder.base.name: 0.5, cell.name: 0.5}
    if cell.prompt() is None:
        passes.evaluate(builder.run, [{cell.name: 1.0}, mix], SETS, "all")
    return str(cell.artifact.folder)


def main() -> None:
    folder, runs, jobs, results = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    quiet.libraries()
    grid = Grid(folder, runs, ranks.start("cpu"))
    outcomes = [result(grid, words) for words in json.loads(jobs.read_text())]
    if ranks.rank() == 0:
        results.write_text(json.dumps(outcomes))
    ranks.stop()


if __name__ == "__main__":
    main()
