"""Launches beside each other, and launches that are killed from outside."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from helpers import grids
from helpers.processes import heed_signals, lives, until

LAUNCH = str(Path(__file__).parents[3] / "engine" / "launch.py")
DEEPSPEED = [sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
SAVED = "store/pending/*/step*/done.json"
pytestmark = pytest.mark.slow


def start(grid: grids.Grid, runs: Path, command: Sequence[str], *words: str) -> subprocess.Popen:
    """A launch in a session of its own, whose output goes to a file."""
    runs.mkdir(exist_ok=True)
    overrides = grid.overrides(f"runs={runs}", "device=cpu", *words)
    with (runs / f"{len(list(runs.glob('*.log')))}.log").open("w") as log:
        return subprocess.Popen(
            [*command, LAUNCH, f"recipe={grid.recipe}", *overrides], env=grids.environment(),
            stdout=log, stderr=log, start_new_session=True, preexec_fn=heed_signals,
        )  # fmt: skip


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


def test_two_launches_of_a_cell_make_it_once(grid, tmp_path):
    """What one of them makes, training or evaluation, the other waits for; both show it."""
    runs = tmp_path / "runs"
    words = ("train.epochs=150", "train.checkpoint_minutes=0")  # seconds, which the other waits
    launches = [start(grid, runs, [sys.executable], *words) for _ in range(2)]
    assert [launch.wait(200) for launch in launches] == [0, 0]
    shown = [(runs / f"{number}.log").read_text() for number in range(2)]
    assert any("waiting for another launch (process" in text for text in shown)
    tables = [text[text.index("percent top-1") :] for text in shown]
    assert tables[0] == tables[1]
    assert not list((runs / "store" / "locks").iterdir())
    assert len(list((runs / "store" / "cells").glob("fine_tune-outline-*"))) == 1
