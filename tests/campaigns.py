"""A campaign over the drawn shapes: three sets, three methods, seconds of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grids
import pytest
import torch

from engine.commands import job
from engine.grid import campaign, jobs, outcomes, workflow

SETS, METHODS = ("outline", "tinted", "few"), ("fine_tune", "linear_probe", "wise_ft")
GRID = """\
model: {folder}/model.yaml
dataset: {folder}/data.yaml
downstream: outline
device: cpu
optimizer: {{name: sgd, lr: 0.02}}
train: {{epochs: 2, batch_size: 12, warmup_steps: 2, zero_stage: 0}}
evaluate: {{split: holdout}}
methods:
  fine_tune: {{}}
  linear_probe: {{}}
  wise_ft: {{method: {{alphas: [0.0, 0.5, 1.0]}}}}
"""
MODEL = """\
name: tiny
arch: test_vit
image_size: 32
weights: {source: random}
head: {fit: true}
"""
DATA = "name: shapes\nkind: folder\nroot: {folder}/images\nsets: [outline, tinted, few]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawings and the campaign's YAML; a space in its path, as users have them."""
    folder = tmp_path_factory.mktemp("my campaign")
    grids.draw(folder / "images")
    (folder / "model.yaml").write_text(MODEL)
    (folder / "data.yaml").write_text(DATA.format(folder=folder))
    (folder / "shapes.yaml").write_text(GRID.format(folder=folder))
    return folder


def in_this_process(patch: pytest.MonkeyPatch) -> list[str]:
    """Let `rib campaign` run its jobs here, as Snakemake would; returns the jobs that run.

    A job runs unless its marker is there and no job before it ran; one that fails leaves none.
    """
    ran: list[str] = []

    def watch(words: object, plans: Sequence[campaign.Plan], *_: object) -> None:
        for planned in plans:
            plan, before = campaign.read(planned.path), len(ran)
            for name in plan.jobs:
                new = ran[before:] if name == campaign.REPORT else ran[before : before + 1]
                if "prepare" in new or (name == campaign.REPORT and new) or not _done(plan, name):
                    _marker(plan, name).unlink(missing_ok=True)
                    do(plan, name)
                    ran.append(name)
                    _marker(plan, name).parent.mkdir(parents=True, exist_ok=True)
                    _marker(plan, name).touch()

    patch.setattr(workflow, "_watch", watch)
    return ran


def _marker(plan: campaign.Plan, name: str) -> Path:
    return plan.place / outcomes.DONE / name


def _done(plan: campaign.Plan, name: str) -> bool:
    return _marker(plan, name).is_file()


def do(plan: campaign.Plan, name: str) -> None:
    """A job of a plan, in this process."""
    device = torch.device("cpu")
    if name == campaign.PREPARE:
        jobs.prepare(plan, device)
    elif name == campaign.REPORT:
        job.report(plan, device)
    else:
        (column,) = [column for column in plan.columns if column.job == name]
        jobs.column(plan, column, device)


def run(folder: Path, *words: str, name: str = "shapes") -> Path:
    """The report's folder of a campaign that was run in this process."""
    file = str(folder / f"{name}.yaml")
    plan = campaign.plan(file, [f"runs={folder / 'runs'}", *words], 2, run_users=True)
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    plan.path.write_bytes(campaign.text(plan))
    for name in plan.jobs:
        do(plan, name)
    return plan.report
