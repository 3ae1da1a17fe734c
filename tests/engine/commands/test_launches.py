"""Launches beside each other, and launches that are killed from outside."""

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event

import psutil
import pytest

from helpers import grids
from helpers.processes import heed_signals, lives, until
from loaders.files import locks

LAUNCH = str(Path(__file__).parents[3] / "engine" / "launch.py")
DEEPSPEED = [sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
SAVED = "store/pending/*/step*/done.json"


def start(grid: grids.Grid, runs: Path, command: Sequence[str], *words: str) -> subprocess.Popen:
    """A launch in a session of its own, whose output goes to a file."""
    runs.mkdir(exist_ok=True)
    overrides = grid.overrides(f"runs={runs}", "device=cpu", *words)
    with (runs / f"{len(list(runs.glob('*.log')))}.log").open("w") as log:
        return subprocess.Popen(
            [*command, LAUNCH, f"recipe={grid.recipe}", *overrides], env=grids.environment(),
            stdout=log, stderr=log, start_new_session=True, preexec_fn=heed_signals,
        )  # fmt: skip


@pytest.mark.slow
def test_two_at_once_meet_on_the_loopback_and_end_with_their_launchers(grid, tmp_path):
    """The command of the first is ended by SIGTERM, the launcher of the second by SIGKILL."""
    places = [tmp_path / "a", tmp_path / "b"]
    words = ("train.epochs=3000", "train.checkpoint_minutes=0.002")
    launches = [start(grid, place, DEEPSPEED, *words) for place in places]
    started = []
    try:
        until(lambda: all(any(place.glob(SAVED)) for place in places), "both train", 200)
        trees = [psutil.Process(launch.pid).children(recursive=True) for launch in launches]
        started = [process for tree in trees for process in tree]
        ranks = [process for process in started if LAUNCH in process.cmdline()[2]]
        assert len(ranks) == 4
        connections = [c for rank in ranks for c in rank.net_connections()]
        assert {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        launches[0].terminate()
        trees[1][0].kill()
        until(lambda: not any(lives(rank.pid) for rank in ranks), "the ranks end", 5)
        assert [launch.wait(5) for launch in launches] == [-signal.SIGTERM] * 2
        until(lambda: not lives(trees[0][0].pid), "the other launcher ends", 10)
    finally:
        for process in (*launches, *started):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_a_launch_waits_for_the_cell_that_another_makes_and_takes_it(
    grid, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "engine.run")
    _, cell = grid.build()
    runs, waits, holds = grid.elsewhere(tmp_path, grid.builder()), Event(), Event()

    def make() -> None:
        with runs.builder().alone(cell.name):
            holds.set()
            assert waits.wait(60)
            shutil.copytree(cell.artifact.folder, tmp_path / "store" / "cells" / cell.name)

    monkeypatch.setattr(locks, "holder", lambda _: waits.set() or "process 7")
    monkeypatch.setattr("engine.training.loop.fit", lambda *_: pytest.fail("trained again"))
    with ThreadPool(1) as pool:
        other = pool.apply_async(make)
        assert holds.wait(60)
        assert runs.build()[1].name == cell.name
        other.get()
    assert f"{cell.name}: waiting for another launch (process 7)" in caplog.text
    assert not list((tmp_path / "store" / "locks").iterdir())
