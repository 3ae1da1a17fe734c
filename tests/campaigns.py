"""A campaign over the drawn shapes: three sets, three methods, seconds of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import grids
import pytest
import torch

from engine.commands import job
from engine.grid import campaign, job_graph, jobs, markers, workflow
from engine.report import finish as last_job

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

    def watch(command: object, grids: Sequence[workflow.Grid]) -> None:
        (plan,) = [grid.plan for grid in grids]
        marker_folder, device = plan.path.parent / markers.DONE, torch.device("cpu")
        work: dict[str, Callable[[], object]] = {
            job_graph.PREPARE: lambda: jobs.prepare(plan, device)
        }
        for column in plan.columns:
            work[f"{job_graph.COLUMN}-{column.name}"] = partial(jobs.column, plan, column, device)
        work[job_graph.REPORT] = lambda: job.report(plan, device)
        before = len(ran)
        for name, do in work.items():
            is_column = name.startswith(job_graph.COLUMN)
            after = ran[before:] if not is_column else [x for x in ran[before:] if x == "prepare"]
            if after or not (marker_folder / name).is_file():
                (marker_folder / name).unlink(missing_ok=True)
                do()
                ran.append(name)
                (marker_folder / name).parent.mkdir(parents=True, exist_ok=True)
                (marker_folder / name).touch()

    patch.setattr(workflow, "_watch", watch)
    return ran


def run(folder: Path, *words: str, name: str = "shapes") -> Path:
    """The report's folder of a campaign that was run in this process."""
    plan = campaign.plan(str(folder / f"{name}.yaml"), [f"runs={folder / 'runs'}", *words], 2)
    device = torch.device("cpu")
    jobs.prepare(plan, device)
    for column in plan.columns:
        jobs.column(plan, column, device)
    return last_job.finish(plan, device).parent
