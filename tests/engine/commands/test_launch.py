"""The entry: every way to start it gives the same cell, and every wrong way says what is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grids
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from engine import cli, recipe
from engine.errors import FirstRankError
from engine.machine import entry, ranks
from engine.recipe import catalogue

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = str(ROOT / "engine" / "launch.py")
PYTHON = sys.executable
DEEPSPEED = str(Path(PYTHON).with_name("deepspeed"))
grid = grids.grid


def run(
    command: Sequence[str], cwd: Path = ROOT, path: Path | None = None
) -> subprocess.CompletedProcess:
    environment = grids.environment()
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "words",
    [["--local_rank=0", "recipe="], ["--local-rank", "1"], ["recipe=", "--local_rank", "3"]],
)
def test_lists_the_recipes(words: list[str], capsys: pytest.CaptureFixture) -> None:
    """Whatever the launcher `deepspeed` adds to the words."""
    assert cli.main(["train", *words]) == 0
    shown = capsys.readouterr().out
    names = (*recipe.names("campaigns"), *recipe.names("methods"), *catalogue.names())
    assert all(name in shown for name in names) and "--print" in shown


def test_print_shows_the_resolved_recipe_and_stops(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    words = ["recipe=emoji/ewc", "downstream=openmoji", "seed=4", f"runs={tmp_path / 'runs'}"]
    assert cli.main(["train", *words, "--print"]) == 0
    saved = tmp_path / "resolved.yaml"
    saved.write_text(capsys.readouterr().out)
    assert recipe.load(str(saved)) == recipe.load("emoji/ewc", words[1:])
    assert not (tmp_path / "runs").exists()


def test_rib_train_is_launch(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["recipe=emoji/ewc", "--print", "seed=4"]
    for command in (cli.main(["train", *words]), cli.main(["train", "emoji/ewc", *words[1:]])):
        assert command == 0
    monkeypatch.setattr(sys, "argv", [LAUNCH, "--local_rank=0", *words])
    with monkeypatch.context() as path, pytest.raises(SystemExit) as end:
        path.setattr(sys, "path", [*sys.path])
        runpy.run_path(LAUNCH, run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    part = shown[: len(shown) // 3]
    assert shown == part * 3 and "seed: 4" in part
    assert cli.main(["train"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("rib train recipe=NAME") and "emoji/ewc" in shown
    assert cli.main(["train", "seed=1"]) == 2
    assert "'seed=1' names no recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=emoji/ewq"], "no recipe 'emoji/ewq'; did you mean 'emoji/ewc'?"),
        (["recipe=emoji/ewc", "train.epoch=1"], "unknown key 'train.epoch'"),
        (["recipe=emoji/ewc", "ewc"], "'ewc' is not an override"),
        (["recipe=emoji", "methods=[ewc]"], "methods= selects methods of `rib campaign`"),
        (["recip=emoji/ewc", "seed=1"], "'recip=emoji/ewc' names no recipe; write recipe=NAME"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    runs = [f"runs={tmp_path}"] if words[0] == "recipe=emoji/ewc" else []
    assert cli.main(["train", *words, *runs]) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error: ") and message in shown and "\n" not in shown


@pytest.fixture
def no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--debug` is kept in the environment for jobs; here it ends with its test."""
    monkeypatch.setenv(entry.DEBUG, "")
    monkeypatch.delenv(entry.DEBUG)


@pytest.mark.parametrize("words", [["campaign", "emojis"], ["train", "recipe=emojis"]])
def test_debug_shows_the_traceback_behind_an_error(
    words: list[str], no_debug: None, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cli.main([*words, "--debug"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("Traceback") and shown[-1] == line
    assert any("engine/recipe/" in text for text in shown)


METHOD = """
from engine.errors import RecipeError
from engine.methods.fine_tune import Method
from engine.recipe.schema import MethodRecipe as Base

class Recipe(Base):
    def check(self, cell):
        {statement}
"""


@pytest.mark.parametrize(
    ("statement", "traced"),
    [
        ("[].index(3)", True),  # a ValueError that Python itself raises
        ("open('/nowhere/at/all')", True),
        ("raise RecipeError('method.x=1 is not possible')", False),
    ],
)
def test_an_error_inside_a_users_method_keeps_its_traceback(
    statement: str, traced: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(METHOD.format(statement=statement))
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nmodule: mine.py\n")
    words = ["recipe=emoji/fine_tune", f"method={tmp_path / 'mine.yaml'}", f"runs={tmp_path}"]
    assert cli.main(["train", *words]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("error: ") and (len(shown) > 1) == traced
    assert traced == any(f'"{tmp_path / "mine.py"}", line 8, in check' in text for text in shown)


def test_torchrun_shows_the_error_that_a_rank_ends_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert cli.main(["train", "recipe=emoji/ewq"]) == 2
    failure = ProcessFailure(0, 1, 2, str(tmp_path / "error.json"))
    shown = ChildFailedError("launch.py", {0: failure}).format_msg().splitlines()
    message = "error: there is no recipe 'emoji/ewq'; did you mean 'emoji/ewc'?"
    assert shown[-2].endswith(message) and shown[-1].strip("=") == ""


def test_the_rank_that_only_stops_tells_torchrun_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    def stop() -> int:
        raise FirstRankError("the first rank failed; its message says why")

    assert entry.guarded(stop) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_a_command_without_a_word(unbuffered: str) -> None:
    environment = grids.environment() | {"PYTHONUNBUFFERED": unbuffered}
    command = [PYTHON, "-m", "engine.cli", "recipes"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 128 + signal.SIGPIPE)


def test_a_pipe_of_another_program_is_an_error_like_any_other(
    capfd: pytest.CaptureFixture,
) -> None:
    def broken() -> int:
        raise BrokenPipeError("the pipe of a worker")

    assert entry.guarded(broken) == 2
    assert capfd.readouterr().err == "error: the pipe of a worker\n"


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    version = importlib.metadata.version("rib-engine")
    assert (caught.value.code, capsys.readouterr().out) == (0, f"rib {version}\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_device_cuda_without_a_gpu_is_refused(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert cli.main(["train", "recipe=emoji/ewc", "device=cuda", f"runs={tmp_path}"]) == 2
    assert "device=cuda, but torch sees no GPU; use device=cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cpu_needs_no_compiler(tmp_path: Path) -> None:
    """DeepSpeed would compile an operator that nobody calls, for 40 s."""
    code = "from engine.machine import ranks; print(ranks.start('cpu')); ranks.stop()"
    environment = grids.environment() | {"TORCH_EXTENSIONS_DIR": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [PYTHON, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "cpu\n"), done.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize(("visible", "local"), [(1, 0), (8, 3)])
def test_a_task_of_slurm_may_see_its_own_gpu_alone(
    visible: int, local: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("name", ["kernels", "loaders"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_package_that_hides_ours_is_named(name: str, kind: str, tmp_path: Path) -> None:
    """The fake compiler would raise if it were run."""
    fake = tmp_path / name / "__init__.py" if kind == "package" else tmp_path / f"{name}.py"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text("raise SystemExit('the wrong package ran')\n")
    process = run([PYTHON, "-m", "engine.cli", "recipes"], tmp_path)
    assert process.returncode == 2, process.stderr
    assert f"error: `{name}` is imported from {tmp_path / name}" in process.stderr
    assert f"not from {ROOT / name}" in process.stderr and "uninstall it" in process.stderr
    assert process.stderr.count("\n") == 1


def test_worker_processes_do_not_run_the_command_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """They import their parent's script, and would wait for the parent's lock on the pack."""
    monkeypatch.setattr(sys, "argv", ["rib", "recipes"])
    runpy.run_path(str(ROOT / "engine" / "rib"), run_name="__mp_main__")


@pytest.mark.parametrize("name", ["engine/__init__.py", "engine.py"])
def test_rib_names_a_package_that_hides_the_engine(name: str, tmp_path: Path) -> None:
    fake = tmp_path / name
    fake.parent.mkdir(exist_ok=True)
    fake.write_text("raise SystemExit('the wrong package ran')\n")
    process = run([str(Path(PYTHON).with_name("rib")), "recipes"], tmp_path, tmp_path)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert f"error: `engine` is imported from {tmp_path / 'engine'}" in process.stderr


@pytest.mark.slow
def test_launch_is_never_hidden(tmp_path: Path) -> None:
    """Our folder comes first, engine/ itself does not, and the working folder does not matter."""
    for name in ("engine", "kernels", "loaders"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package ran')\n")
    process = run([PYTHON, LAUNCH, "recipe="], tmp_path, tmp_path)
    assert process.returncode == 0 and "emoji/ewc" in process.stdout, process.stderr
    code = f"import runpy, sys; sys.argv = ['x', 'recipe=']; runpy.run_path({LAUNCH!r})"
    code += "; import importlib.util as u; print(u.find_spec('evaluate'), u.find_spec('table'))"
    assert run([PYTHON, "-c", code], tmp_path).stdout.strip().endswith("None None")


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
def test_every_way_to_start_gives_the_same_cell(
    ways: tuple[str, ...], grid: grids.Grid, tmp_path: Path
) -> None:
    """Under the same name, with the same weights; from another working folder."""
    _, alone = grid.build()
    expected = grids.weights(alone)
    for way in ways:
        words = list(grid.overrides(f"runs={way}", "device=cpu"))
        process = run([*STARTS[way], f"recipe={grid.recipe}", *words], tmp_path)
        assert process.returncode == 0, process.stderr[-3000:]
        assert "FT (canonical) on outline" in process.stdout and "RI " in process.stdout
        assert process.stdout.count("percent top-1") == 1  # one rank speaks
        (cell,) = (tmp_path / way / "store" / "cells").glob("fine_tune-outline-*")
        weights = load_file(cell / "weights.safetensors")
        assert cell.name == alone.name
        assert grids.distance(weights, expected) < 1e-5
        is_alone = way in ("python", "deepspeed")
        assert grids.same(weights, expected) == is_alone, "sums of two ranks round"
        saved = recipe.load(str(cell / "recipe.yaml"))  # beside the result, and a recipe
        assert (saved.runs, saved.downstream) == (way, "outline")


@pytest.mark.slow
def test_mistake_found_late_is_one_line_on_two_ranks(grid: grids.Grid, tmp_path: Path) -> None:
    words = grid.overrides(f"runs={tmp_path}", "dataset.root=/nowhere", "device=cpu")
    process = run([*STARTS["torchrun"], f"recipe={grid.recipe}", *words], tmp_path)
    assert process.returncode != 0
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert any("/nowhere/upstream is not a folder" in line for line in lines), process.stderr[
        -2000:
    ]
    assert f'File "{ROOT / "engine"}' not in process.stderr  # torchrun's own traceback aside
    assert "/nowhere/upstream is not a folder" in process.stderr.splitlines()[-2], "and it ends so"
