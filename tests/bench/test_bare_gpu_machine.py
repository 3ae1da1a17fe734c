"""What `make gpu` runs on a machine that has torch, Triton, timm and pytest, and little else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.stages import python as unbuffered
from bench.gpu.stages import stages

ROOT = Path(__file__).parents[2]


BARE = os.environ | {
    "WITHOUT_PACKAGES": "deepspeed,msgspec,resvg_py,snakemake",
    "PYTHONPATH": f"{ROOT / 'tests' / 'without_packages'}:{ROOT}",
}


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """This Python without those packages, in the root of the checkout."""
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=BARE, capture_output=True, text=True)


def test_the_packages_are_hidden():
    absent = python("-c", "import importlib.util as u; print(u.find_spec('msgspec'))")
    assert absent.stdout == "None\n"
    assert "No module named 'msgspec'" in python("-c", "import msgspec").stderr


@pytest.mark.slow
def test_all_tests_of_the_gpu_are_collected():
    (command,) = next(s for s in stages(Path(), "cuda", small=False) if s.name == "tests").commands
    collected = python(*command, "-n", "0", "--collect-only", "-qq")
    assert collected.returncode == 0, collected.stdout[-2000:]
    assert sum(map(int, re.findall(r"\.py: (\d+)$", collected.stdout, re.MULTILINE))) > 50


@pytest.mark.slow
def test_the_headline_is_measured_and_the_rest_is_named(tmp_path):
    words = ("--device", "cpu", "--small", "--out", str(tmp_path))
    ended = python("-m", "bench.gpu", "training", "probe", "engine", *words)
    summary = {
        row["stage"]: row for row in json.loads((tmp_path / "summary.json").read_text())["rows"]
    }
    assert {name: outcome["state"] for name, outcome in summary.items()} == {
        "training": "green", "probe": "green", "engine": "not run",
    }, ended.stdout[-3000:]  # fmt: skip
    assert summary["engine"]["why"] == "this Python lacks deepspeed, msgspec"
    rows = json.loads((tmp_path / "headline-cpu.json").read_text())["rows"]
    assert {(row["what"], row["batch"]) for row in rows} == {
        (what, batch) for what in ("FT", "LwF", "EWC", "evaluation") for batch in (2, 4)
    }
    assert all(row["images_s"] > 0 and row["mfu"] > 0 for row in rows)


@pytest.mark.slow
def test_failures_are_shown_at_once(tmp_path):
    """As a stage runs them, whose time ends in the middle of a test that hangs."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "conftest.py").write_text((ROOT / "tests" / "gpu" / "conftest.py").read_text())
    (folder / "test_two.py").write_text(
        "import time\n"
        "def test_wrong():\n    assert 'a kernel' == 'its twin'\n"
        "def test_hangs():\n    time.sleep(600)\n"
    )
    (command,) = next(s for s in stages(tmp_path, "cpu", small=True) if s.name == "tests").commands
    words = [str(folder) if word == "tests/gpu" else word for word in command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(unbuffered(words), start_new_session=True, **pipes) as child:
        try:
            assert any("assert 'a kernel' == 'its twin'" in line for line in child.stdout)
        finally:
            os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_engine_without_resvg_and_snakemake_runs_jobs_and_skips_the_grid():
    program = (
        "import engine.grid.jobs, loaders.benchmarks.emoji\n"
        "from bench import contest\n"
        "try: contest.cases('grid')\n"
        "except ImportError as error: print(error)"
    )
    environment = BARE | {"WITHOUT_PACKAGES": "resvg_py,snakemake"}
    command = [sys.executable, "-c", program]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.stdout == "a campaign's jobs need snakemake\n", child.stderr


@pytest.mark.parametrize(
    ("words", "asked"),
    [((), [".venv/bin/python", "python3"]), (("PYTHON=/my/python",), ["/my/python"])],
)
def test_make_gpu_asks_the_python_of_set_up_before_the_systems(words, asked):
    rule = subprocess.run(["make", "-n", "gpu", *words], cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"for python in (.*); do", rule.stdout)[1].split() == asked
