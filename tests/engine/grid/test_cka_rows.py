"""A campaign with `evaluate.cka`: its record has every headline model's blocks, and its page shows
them."""

from __future__ import annotations

from pathlib import Path

import campaigns
import pytest
from campaigns import METHODS, SETS
from grids import grid

from engine.cost import estimate
from engine.grid import campaign, record

__all__ = ["grid"]

folder = campaigns.folder
WORDS = ("evaluate.cka=6", "evaluate.batch_size=8")


@pytest.mark.slow
@pytest.mark.usefixtures("grid")
def test_the_record_has_the_blocks_of_every_headline_model(folder: Path):
    page = campaigns.run(folder, *WORDS) / "index.html"
    words = [f"runs={folder / 'runs'}", *WORDS]
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
    campaigns.run(folder)
    assert record.find(str(folder / "shapes.yaml"), words[:1]).record.cka is None


def test_a_plan_counts_a_pass_of_the_pre_trained_model_and_of_each_headline_model(folder: Path):
    words = [f"runs={folder / 'runs'}"]
    counted = estimate.of(campaign.plan(str(folder / "shapes.yaml"), [*words, *WORDS], cores=1))
    works = [work for work in counted.work if work.kind == "cka"]
    assert {work.images for work in works} == {6 * (1 + len(METHODS))}
    assert len(works) == len(SETS) * (len(SETS) + 1)
    images = sum(work.images for work in works)
    assert sum(work.flops for work in works) == pytest.approx(images * counted.forward_flops)
    without = estimate.of(campaign.plan(str(folder / "shapes.yaml"), words, cores=1))
    assert [work for work in counted.work if work.kind != "cka"] == list(without.work)
