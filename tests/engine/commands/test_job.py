"""A job of a campaign as a program: its device, its GPUs, its ranks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.campaigns import job_states
from engine.campaigns.plan import Plan
from engine.commands import doctor, job
from helpers import campaigns, grids
from helpers.processes import ROOT, run


@pytest.fixture
def started(monkeypatch, tmp_path) -> list[list[str]]:
    """The command lines that a job becomes, on a machine with GPUs a, b and c."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(job, "gpu_names", lambda: ["GPU-a", "GPU-b", "GPU-c"])
    monkeypatch.setattr(job, "runtime_folder", lambda: tmp_path)
    monkeypatch.setattr(job, "_held", [])
    monkeypatch.setattr(sys, "argv", ["job.py", "column-few", "--plan", "plan.json"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    lines: list[list[str]] = []
    monkeypatch.setattr(job.os, "execv", lambda program, words: lines.append(words[3:]))
    return lines


def test_a_job_sees_its_own_gpus_alone_and_of_several_becomes_the_launcher(started):
    itself = ["engine.commands.job", "column-few", "--plan", "plan.json"]
    job._take_gpus(1, "cpu")
    assert not started
    job._take_gpus(1, "cuda")
    assert started == [itself] and job.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    job._take_gpus(2, "auto")
    assert started[1] == ["engine.machine.launcher", "2", *itself]
    assert job.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-c"
    with pytest.raises(ValueError, match="--ranks 4, but torch sees 3 GPUs"):
        job._take_gpus(4, "cuda")


def test_a_job_stays_as_it_is_where_there_is_nothing_to_choose(started, monkeypatch):
    """After it became a process with a GPU too, or it would go on for ever."""
    for names in ([], ["GPU-b"]):
        monkeypatch.setattr(job, "gpu_names", lambda names=names: names)
        job._take_gpus(1, "cuda")
    assert not started and not job._held


CLAIM = """
import os, sys
from pathlib import Path
from engine.commands.job import claim_gpus
names = [f"GPU-{number}" for number in range(int(sys.argv[2]))]
print(*claim_gpus(names, int(sys.argv[3]), Path(sys.argv[1])), flush=True)
os.execvp("cat", ["cat"])  # a launcher that the job becomes
"""


def claimed(folder: Path, count: int, number: int) -> tuple[subprocess.Popen[str], list[int]]:
    command = [sys.executable, "-c", CLAIM, str(folder), str(count), str(number)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    return process, [int(word) for word in process.stdout.readline().split()]


def test_a_job_on_a_gpu_without_a_compiler_or_driver_says_so_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job._check_gpu("auto")  # a job on a CPU
    facts = {"error": "", "cuda": "13.0", "gpus": [], "warnings": ["too old"], "version": "2.15"}
    monkeypatch.setattr(doctor, "torch_facts", lambda: facts)
    monkeypatch.setattr(doctor, "answer", lambda *_, **__: "570.86\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ValueError, match=r"sees none with driver 570.86; too old; fix: .*compat"):
        job._check_gpu("cuda")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device in ("auto", "cuda"):
        with pytest.raises(ValueError, match=r"g\+\+ did not start.*; fix: apt-get install g\+\+"):
            job._check_gpu(device)


def test_jobs_of_several_gpus_have_different_ones(tmp_path):
    """Those that fewest jobs hold; a job that was killed holds none."""
    jobs = [claimed(tmp_path, 3, count) for count in (1, 2, 2)]
    try:
        assert [gpus for _, gpus in jobs] == [[0], [1, 2], [0, 1]]
        jobs[1][0].kill()
        jobs[1][0].wait()
        jobs.append(claimed(tmp_path, 3, 3))
        assert jobs[-1][1] == [1, 2, 0]
    finally:
        for process, _ in jobs:
            process.kill()
            process.wait()


def on_two_ranks(plan: Plan, name: str) -> None:
    command = [sys.executable, "-m", "engine.commands.job", name, "--plan", str(plan.place.plan)]
    process = run([*command, "--ranks", "2"])
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.exhaustive
def test_what_two_ranks_prepare_is_what_one_prepares(folder, finished, tmp_path):
    """Their graphs are those that two ranks of a column look for: one for each GPU's number."""
    plan = campaigns.planned(folder, f"runs={tmp_path / 'runs'}")
    on_two_ranks(plan, "prepare")
    state = job_states.read_job(plan.place, "prepare")
    assert state.state == job_states.FINISHED and state.attempts[-1].processes == 2
    made = sorted((tmp_path / "runs" / "store").glob("[fp]*/*/*.[np]*"))
    assert len(made) > 4 and {file.suffix for file in made} == {".npy", ".parquet"}
    for file in made:
        twin = finished / file.relative_to(tmp_path / "runs")
        assert file.read_bytes() == twin.read_bytes(), file


@pytest.mark.exhaustive
def test_a_column_on_two_ranks_is_close_to_that_on_one(folder, finished, tmp_path):
    runs = campaigns.unfinished(finished, tmp_path / "runs")
    plan = campaigns.planned(folder, f"runs={runs}", "trackers=[tensorboard]")  # of the first rank
    on_two_ranks(plan, "column-few")
    (cell,) = (runs / "store" / "cells").glob("fine_tune-few-*")
    cells = {"1": finished / "store" / "cells" / cell.name, "2": cell}
    for ranks_of, place in cells.items():
        assert f'"ranks": "{ranks_of}"' in (place / "versions.json").read_text()
    weights = [load_file(place / "weights.safetensors") for place in cells.values()]
    assert 0 < grids.distance(*weights) < 1e-5
