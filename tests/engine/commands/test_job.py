"""A job of a campaign as a program: its device, its GPU, its ranks."""

import sys

import campaigns
import grids
import pytest
import torch
from processes import run
from safetensors.torch import load_file

from engine.commands import job
from engine.machine import gpus, ranks


def test_a_job_takes_free_gpus_and_of_several_becomes_the_launcher(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpus, "names", lambda: ["GPU-a", "GPU-b", "GPU-c"])
    monkeypatch.setattr(gpus, "runtime_folder", lambda: tmp_path)
    monkeypatch.setattr(gpus, "_held", [])
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    started: list[list[str]] = []
    monkeypatch.setattr(job.os, "execv", lambda program, words: started.append(words))
    assert [job._free_gpu(device) for device in ("cuda", "cpu")] == [0, 0]
    job._become_ranks(2, "cuda")
    assert job.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-c"
    assert started[0][started[0].index("engine.machine.launcher") + 1] == "2"
    with pytest.raises(ValueError, match="--ranks 4, but torch sees 3 GPUs"):
        job._become_ranks(4, "cuda")


def test_a_device_that_is_not_there_is_replaced_only_to_find(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ranks.present(gpu) == ranks.present(cpu) == cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ranks.present(gpu) == gpu and ranks.present(cpu) == cpu


@pytest.mark.slow
def test_a_column_on_two_ranks_is_close_to_that_on_one(folder, finished, tmp_path):
    runs = campaigns.unfinished(finished, tmp_path / "runs")
    plan = campaigns.planned(folder, f"runs={runs}", "trackers=[tensorboard]")  # of the first rank
    command = [sys.executable, "-m", "engine.commands.job", "column-few"]
    process = run([*command, "--plan", str(plan.path), "--ranks", "2"])
    assert process.returncode == 0, process.stderr[-3000:]
    (cell,) = (runs / "store" / "cells").glob("fine_tune-few-*")
    cells = {"1": finished / "store" / "cells" / cell.name, "2": cell}
    for ranks_of, place in cells.items():
        assert f'"ranks": "{ranks_of}"' in (place / "versions.json").read_text()
    weights = [load_file(place / "weights.safetensors") for place in cells.values()]
    assert 0 < grids.distance(*weights) < 1e-5
