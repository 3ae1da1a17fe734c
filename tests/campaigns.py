"""A campaign over the drawn shapes: three sets, three methods, seconds of training."""

from __future__ import annotations

from pathlib import Path

import grids
import pytest
import torch

from engine.grid import campaign, jobs
from engine.report import tables

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


def run(folder: Path, *words: str, name: str = "shapes") -> Path:
    """The report's folder of a campaign that was run in this process."""
    plan = campaign.plan(str(folder / f"{name}.yaml"), [f"runs={folder / 'runs'}", *words], 2)
    device = torch.device("cpu")
    jobs.prepare(plan, device)
    for name in plan.sets:
        jobs.column(plan, name, device)
    return tables.finish(plan, device).parent
