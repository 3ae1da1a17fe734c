"""The entry: every way to start it gives the same cell, and every wrong way says what is wrong;
launches beside each other, and launches that are killed from outside."""

import contextlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from unittest import mock

import psutil
import pytest
import torch
from safetensors.torch import load_file

from engine import cli
from engine.errors import OtherRankError
from engine.machine import entry, ranks
from engine.recipe.resolve import load_recipe
from helpers import grids
from helpers.endings import refused
from helpers.processes import ROOT, heed_signals, lives, run, until
from loaders.files import locks

LAUNCH = str(ROOT / "engine" / "launch.py")
PYTHON = sys.executable
DEEPSPEED, RIB = (str(Path(PYTHON).with_name(name)) for name in ("deepspeed", "rib"))


def test_a_mistake_is_one_line_and_debug_shows_its_traceback(capsys, monkeypatch):
    monkeypatch.setenv(entry.DEBUG, "")
    monkeypatch.delenv(entry.DEBUG)  # --debug is kept in the environment for jobs
    words = ["train", "recip=emoji/ewc"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cli.main([*words, "--debug"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("Traceback") and shown[-1] == line


def test_rib_train_is_launch(capsys, monkeypatch):
    words = ["recipe=emoji/ewc", "--print", "seed=4"]
    assert cli.main(["train", *words]) == cli.main(["train", "emoji/ewc", *words[1:]]) == 0
    monkeypatch.setattr(sys, "argv", [LAUNCH, "--local_rank=0", *words])
    with monkeypatch.context() as path, pytest.raises(SystemExit) as end:
        path.setattr(sys, "path", [*sys.path])
        runpy.run_path(LAUNCH, run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    part = shown[: len(shown) // 3]
    assert shown == part * 3 and "seed: 4" in part
    for words in ([], ["recipe=", "--local_rank", "3"]):  # which the launcher `deepspeed` adds
        assert cli.main(["train", *words]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("rib train CAMPAIGN/METHOD")
        assert all(name in shown for name in ("emoji_shots", "greedy_soup", "--print"))


METHOD = """
from engine.errors import RecipeError
from engine.methods.fine_tune import Method
from engine.recipe.schema import MethodRecipe as Base

class Recipe(Base):
    def check(self, cell):
        {statement}
"""


@pytest.mark.parametrize(
    ("statement", "traced", "code"),
    [
        ("[].index(3)", True, 2),  # a ValueError that Python itself raises
        ("open('/nowhere/at/all')", True, 2),
        ("[][3]", True, 1),
        ("import sys; sys.exit(0)", True, 2),
        ("raise type('Odd', (BaseException,), {})('exit(0)')", True, 1),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", True, 1),
        (r"raise ValueError('\x1b[31m' + 50_000_000 * 'x')", True, 2),
        ("raise RecipeError('method.x=1 is not possible')", False, 2),
    ],
)
def test_an_error_or_exit_inside_a_users_method_keeps_its_traceback(
    statement, traced, code, tmp_path, capsys
):
    (tmp_path / "mine.py").write_text(METHOD.format(statement=statement))
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nmodule: mine.py\n")
    words = ["recipe=emoji/fine_tune", f"method={tmp_path / 'mine.yaml'}", f"runs={tmp_path}"]
    assert cli.main(["train", *words]) == code
    text = capsys.readouterr().err
    shown = text.splitlines()
    assert len(text) < 50_000 and "\x1b" not in text
    assert shown[-1].startswith("error: ") and (len(shown) > 1) == traced
    assert ("mine.py, line 8, ended the command before" in shown[-1]) == ("exit(0)" in statement)
    assert traced == any(f'"{tmp_path / "mine.py"}", line 8, in check' in text for text in shown)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_device_cuda_without_a_gpu_is_refused(tmp_path):
    line = refused("train", "recipe=emoji/ewc", "device=cuda", f"runs={tmp_path}")
    assert "device=cuda, but torch sees no GPU; use device=cpu" in line


@pytest.mark.parametrize(("visible", "local"), [(1, 0), (8, 3)])
def test_a_task_of_slurm_may_see_its_own_gpu_alone(visible, local, monkeypatch):
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert ranks.start("cuda") == torch.device("cuda", local)
    assert chosen == [local]
    assert os.environ["LOCAL_RANK"] == str(local), "as DeepSpeed will read it"


def test_torchrun_is_told_the_error_that_a_rank_ends_with(monkeypatch, tmp_path):
    """And not that of a rank which only stops because the first one failed."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    stop = mock.Mock(side_effect=OtherRankError("another rank failed; its message says why"))
    assert entry.guarded(stop) == 2 and not file.exists()
    assert cli.main(["train", "recipe=emoji/ewq"]) == 2
    assert "\"error: there is no recipe 'emoji/ewq'; did you mean" in file.read_text()


def test_a_reader_that_leaves_ends_a_command_without_a_word(capfd):
    command = [PYTHON, "-m", "engine.cli", "recipes"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=grids.environment(), **pipes) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 128 + signal.SIGPIPE)
    broken = mock.Mock(side_effect=BrokenPipeError("the pipe of a worker"))
    assert entry.guarded(broken) == 2, "another pipe is an error like any other"
    assert capfd.readouterr().err == "error: the pipe of a worker\n"


def test_a_package_that_hides_ours_is_named_and_does_not_run(tmp_path):
    name = "engine"
    (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong package ran')\n")
    process = run([RIB, "recipes"], tmp_path, PYTHONPATH=str(tmp_path))
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert f"error: `{name}` is imported from {tmp_path / name}" in process.stderr
    process = run([PYTHON, LAUNCH, "recipe="], tmp_path, PYTHONPATH=str(tmp_path))
    assert process.returncode == 0 and "emoji/ewc" in process.stdout, "our folder comes first there"


def test_worker_processes_do_not_run_the_command_again(monkeypatch):
    """They import their parent's script, and would wait for the parent's lock on the pack."""
    monkeypatch.setattr(sys, "argv", ["rib", "recipes"])
    runpy.run_path(str(ROOT / "engine" / "rib"), run_name="__mp_main__")


STARTS = {
    "python": [PYTHON, LAUNCH],
    "deepspeed": [DEEPSPEED, LAUNCH],
    "several": [DEEPSPEED, "--num_gpus", "2", LAUNCH],  # on a CPU: two ranks
    "torchrun": grids.torchrun(2, LAUNCH),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways",
    [("several",), pytest.param(("python", "deepspeed", "torchrun"), marks=pytest.mark.exhaustive)],
)
def test_every_way_to_start_gives_the_same_cell(ways, grid, tmp_path):
    """Under the same name, with the same weights; from another working folder."""
    _, alone = grid.build()
    expected = grids.weights(alone)
    for way in ways:
        words = list(grid.overrides(f"runs={way}", "device=cpu"))
        command = [*STARTS[way], f"recipe={grid.recipe}", *words]
        process = run(command, tmp_path, TORCH_EXTENSIONS_DIR=str(tmp_path))
        assert process.returncode == 0, process.stderr[-3000:]
        assert not [*tmp_path.rglob("*.so")], "DeepSpeed compiled for 40 s what nobody calls"
        assert "FT (original) on outline" in process.stdout and "RI " in process.stdout
        assert process.stdout.count("percent top-1") == 1  # one rank speaks
        (cell,) = (tmp_path / way / "store" / "cells").glob("fine_tune-outline-*")
        weights = load_file(cell / "weights.safetensors")
        assert cell.name == alone.name
        assert grids.distance(weights, expected) < 1e-5
        is_alone = way in ("python", "deepspeed")
        assert grids.same(weights, expected) == is_alone, "sums of two ranks round"
        saved = load_recipe(str(cell / "recipe.yaml"))  # beside the result, and a recipe
        assert (saved.runs, saved.downstream) == (way, "outline")


@pytest.mark.slow
def test_mistake_found_late_is_one_line_on_two_ranks(grid, forked, tmp_path):
    words = grid.overrides(f"runs={tmp_path}", "dataset.root=/nowhere", "device=cpu")
    command = [*STARTS["torchrun"], f"recipe={grid.recipe}", *words]
    process = run(command, tmp_path, **forked | {"FORKED": f"{LAUNCH},torch.distributed.run"})
    assert process.returncode != 0
    assert "error: /nowhere/upstream is not a folder" in process.stderr, process.stderr[-2000:]
    assert f'File "{ROOT / "engine"}' not in process.stderr  # torchrun's own traceback aside
    # torchrun's last words; which rank it takes for the first that failed is a matter of time.
    summary = process.stderr.rpartition("\nFailures:\n")[2]
    assert "traceback : error: /nowhere/upstream is not a folder" in summary


SAVED = "store/pending/*/step*/done.json"


def start(grid: grids.Grid, runs: Path, *words: str) -> subprocess.Popen:
    """A launch on two ranks in a session of its own, whose output goes to a file."""
    runs.mkdir()
    overrides = grid.overrides(f"runs={runs}", "device=cpu", *words)
    command = [PYTHON, *STARTS["several"], f"recipe={grid.recipe}", *overrides]
    with (runs / "launch.log").open("w") as log:
        return subprocess.Popen(
            command, env=grids.environment(), stdout=log, stderr=log, start_new_session=True,
            preexec_fn=heed_signals,
        )  # fmt: skip


@pytest.mark.exhaustive  # each promise with stand-ins: test_parent.py and test_ranks.py
def test_two_at_once_meet_on_the_loopback_and_end_with_their_launchers(grid, tmp_path):
    """The command of the first is ended by SIGTERM, the launcher of the second by SIGKILL."""
    places = [tmp_path / "a", tmp_path / "b"]
    words = ("train.epochs=3000", "train.checkpoint_minutes=0.002")
    launches = [start(grid, place, *words) for place in places]
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
