"""A report of a campaign whose cells GPUs made, on a machine without one."""

from pathlib import Path

import pytest
import torch

from engine.campaigns import jobs
from engine.campaigns.plan import make_plan
from engine.machine import precision, ranks
from engine.models import compiled
from engine.recipe import parsed
from engine.report import finish
from engine.run import Run
from helpers import grids


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_report_finds_what_gpus_made_and_measures_distances_on_the_cpu(
    folder: Path, grid: grids.Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cells are made on the CPU under the names that a GPU's have, in the same form."""
    monkeypatch.setattr(Run, "machine", {"device": "cuda"})
    monkeypatch.setattr(precision, "resolve", lambda *_: "fp32")
    monkeypatch.setattr(compiled, "resolve", lambda *_: "never")
    words = [f"runs={tmp_path}", "methods=[fine_tune]", "dataset.sets=[few,tinted]"]
    plan = make_plan(str(folder / "shapes.yaml"), parsed(words), 2)
    ranks.start("cpu")
    jobs.prepare(plan, torch.device("cpu"))
    for column in plan.columns:
        jobs.column(plan, column, torch.device("cpu"))
    cells = set((tmp_path / "store" / "cells").iterdir())
    page = finish.finish(plan, torch.device("cuda"))
    assert set((tmp_path / "store" / "cells").iterdir()) == cells
    assert "cuda" in page.read_text() and page.with_name("distances.csv").is_file()
