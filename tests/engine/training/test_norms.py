"""Batch norms on two ranks against the same on one: outputs, gradients and statistics."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from grids import environment, torchrun
from torch import nn

from engine.machine import ranks
from engine.training.norms import BatchNorms


@pytest.mark.slow
def test_two_ranks_normalise_by_the_statistics_of_all_samples(tmp_path):
    """One sample leaves the second rank a filler; three are shared out unevenly."""
    results = tmp_path / "results.json"
    worker = str(Path(__file__).parents[2].joinpath("norms_worker.py"))
    command = torchrun(2, worker, str(results))
    process = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 0, process.stderr[-3000:]
    errors = json.loads(results.read_text())
    assert errors.keys() == {"1", "3", "8"}
    for samples, worst in errors.items():
        assert max(worst) < 1e-5, (samples, worst, errors)


def test_a_batch_norm_of_an_unknown_kind_is_refused_by_name(monkeypatch):
    class Renorm(nn.BatchNorm2d):
        pass

    BatchNorms(Renorm(4))  # alone it does what it does
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(ValueError, match=r"cannot share the statistics of Renorm.*=true"):
        BatchNorms(Renorm(4))
    BatchNorms(Renorm(4).eval())
