"""A campaign with `evaluate.cka`: its record has every headline model's blocks, and its page shows
them."""

from __future__ import annotations

from pathlib import Path

import campaigns
import pytest
from campaigns import METHODS, SETS
from grids import grid

from engine.grid import record

__all__ = ["grid"]

folder, finished = campaigns.folder, campaigns.finished
WORDS = ("evaluate.cka=6", "evaluate.batch_size=8")


@pytest.mark.slow
def test_the_record_has_the_blocks_of_every_headline_model(folder: Path, finished: Path):
    page = campaigns.run(folder, *WORDS) / "index.html"
    words = [f"runs={finished}", *WORDS]
    rows = record.find(str(folder / "shapes.yaml"), words).record.cka
    cells = {(row["method"], row["downstream"], row["evaluated_on"]) for row in rows}
    assert len(rows) == len(cells) == len(METHODS) * len(SETS) * (len(SETS) + 1)
    assert {row["alpha"] for row in rows if row["method"] == "wise_ft"} == {0.5}
    assert all(list(row["blocks"]) == [f"blocks.{k}" for k in range(6)] for row in rows)
    probes = [
        value for row in rows if row["method"] == "linear_probe" for value in row["blocks"].values()
    ]
    assert probes == pytest.approx([1.0] * len(probes))
    tuned = [
        value for row in rows if row["method"] == "fine_tune" for value in row["blocks"].values()
    ]
    assert min(tuned) < 0.999
    assert "How far the features moved" in page.read_text()
    assert record.find(str(folder / "shapes.yaml"), words[:1]).record.cka is None
