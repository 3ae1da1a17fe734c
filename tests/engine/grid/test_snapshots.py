"""Snapshots in a campaign: they are evaluated, their weights removed, and nothing trains twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import campaigns
import grids
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from engine.grid import campaign, jobs, make_record
from engine.training import loop

folder, grid = campaigns.folder, grids.grid
CPU = torch.device("cpu")
STEPS = [1, 2, 6]  # of 25 images in batches of 12, two epochs; `few` has 15, and ends with step 4


@dataclass
class Campaign:
    """A campaign on a store of its own, and the labels of what it trained."""

    file: Path
    runs: Path
    trained: list[str] = field(default_factory=list)

    def run(self, *words: str, methods: str = "fine_tune") -> campaign.Plan:
        """Run its columns, of which `trained` then names those that trained."""
        words = (f"runs={self.runs}", f"methods=[{methods}]", *words)
        plan = campaign.plan(str(self.file), words, 1)
        self.trained.clear()
        for column in plan.columns:
            jobs.column(plan, column, CPU)
        return plan

    def folders(self, kind: str, pattern: str = "*") -> list[Path]:
        return sorted((self.runs / "store" / kind).glob(pattern))


@pytest.fixture(scope="module")
def base(folder: Path, grid: grids.Grid) -> Path:
    """A store with what all columns share."""
    text = (folder / "shapes.yaml").read_text()
    text = text.replace("fine_tune: {}", "fine_tune: {train: {snapshots: 3}}")
    (folder / "followed.yaml").write_text(text)
    runs = folder / "base"
    jobs.prepare(campaign.plan(str(folder / "followed.yaml"), [f"runs={runs}"], 1), CPU)
    return runs


@pytest.fixture
def followed(
    folder: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Campaign]:
    runs = tmp_path / "runs"
    shutil.copytree(base, runs)
    case, fit = Campaign(folder / "followed.yaml", runs), loop.fit

    def counted(method, run, *rest):
        if not method.fits_head and run.recipe.method.name == "fine_tune":
            case.trained.append(run.recipe.downstream)
        return fit(method, run, *rest)

    monkeypatch.setattr(loop, "fit", counted)
    yield case


ALL = list(campaigns.SETS)


def test_snapshots_are_evaluated_and_their_weights_removed(followed: Campaign):
    plan = followed.run(methods="fine_tune,linear_probe,wise_ft")
    assert followed.trained == ALL
    assert not followed.folders("snapshots")
    rows = make_record.record_of(plan, CPU).evaluations
    during = [row for row in rows if row.setting]
    assert {row.setting for row in during} == {f"step={step}" for step in STEPS}
    assert {row.method for row in during} == {"fine_tune"}
    assert not any(row.headline for row in during)
    assert len(during) == len(STEPS) * len(ALL) * (len(ALL) + 1)
    paths = {
        (row.setting, row.downstream, row.evaluated_on): row.path
        for row in rows
        if row.method == "fine_tune"
    }
    for downstream in ALL:
        of_steps = [paths[f"step={step}", downstream, "tinted"] for step in STEPS]
        assert len(set(of_steps)) == len(STEPS)
        assert of_steps[-1] == paths["", downstream, "tinted"], "the last point is the cell itself"
    followed.run(methods="fine_tune,linear_probe,wise_ft")
    assert not followed.trained, "weights that are gone are no reason to train"
    stored = sum(
        pq.read_metadata(path).num_rows for path in followed.folders("predictions", "*/*.parquet")
    )
    assert stored


def test_what_was_made_without_snapshots_trains_again_to_the_same_bits(followed: Campaign):
    followed.run("train.snapshots=0")
    before = {f.parent.name: load_file(f) for f in followed.folders("cells", "fine*/weights*")}
    for name in before:
        if "outline" in name:
            shutil.rmtree(followed.runs / "store" / "cells" / name)
    followed.run()
    assert followed.trained == ALL
    after = {f.parent.name: load_file(f) for f in followed.folders("cells", "fine*/weights*")}
    assert before.keys() == after.keys()
    assert all(grids.same(after[name], before[name]) for name in before)


def test_a_prediction_that_is_gone_trains_its_column_again(followed: Campaign):
    followed.run()
    predictions = followed.folders("predictions", "fine_tune-outline-step2-on-few-*")
    (table,) = predictions
    before = (table / "part-00000.parquet").read_bytes()
    shutil.rmtree(table)
    followed.run()
    assert followed.trained == ["outline"]
    assert (table / "part-00000.parquet").read_bytes() == before
    assert not followed.folders("snapshots")


def test_weights_are_kept_on_request(followed: Campaign):
    followed.run("train.keep_snapshots=true")
    weights = followed.folders("snapshots", "*/weights.safetensors")
    assert len(weights) == 3 * 2
    for table in followed.folders("predictions", "fine_tune-few-step*"):
        shutil.rmtree(table)
    followed.run("train.keep_snapshots=true")
    assert (
        not followed.trained and followed.folders("snapshots", "*/weights.safetensors") == weights
    )
    followed.run()
    assert not followed.trained and not followed.folders("snapshots")


def test_an_interrupted_column_finds_its_snapshots(
    followed: Campaign, monkeypatch: pytest.MonkeyPatch
):
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(jobs.Builder, "entries", stop)
        with pytest.raises(Stopped):
            followed.run()
    assert followed.trained == ["outline"]
    assert len(followed.folders("snapshots")) == 2
    followed.run()
    assert followed.trained == ["tinted", "few"]


def test_methods_that_are_not_in_the_table_leave_no_snapshots(followed: Campaign):
    plan = followed.run(methods="wise_ft")
    assert followed.trained == ALL and not followed.folders("snapshots")
    assert not any(row.setting for row in make_record.record_of(plan, CPU).evaluations)
