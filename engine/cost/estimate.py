"""What a campaign costs before anything runs: images, operations, GPU-hours, disk and jobs.

Operations are counted on the architecture itself (`dry_run`). Hours follow from an assumed share of
a device's peak: they are a prediction, not a measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from engine import models
from engine.cost.disk import size_bytes
from engine.cost.dry_run import PREPARE, DryRun, PlannedCell, Work
from engine.data import imagenet, packs, sets
from engine.data.sets import LabelledSet
from engine.grid import campaign, job_graph
from engine.grid.job_graph import Job
from engine.recipe.request import Request
from engine.recipe.schema import Recipe
from loaders import folders
from loaders.benchmarks import emoji
from loaders.pack import MANIFEST, Pack

ROW_BYTES = 42  # of a stored prediction: measured on files of 200 rows; larger files need less


@dataclass(frozen=True)
class Device:
    """The peaks of a GPU in TFLOP/s, and the share of them (`mfu`) that a campaign reaches."""

    tflops: float = 312.0  # an A100, dense bf16: NVIDIA's data sheet
    fp32_tflops: float = 19.5  # the same, without TF32, which the engine switches off
    mfu: float = 0.4

    @property
    def peaks(self) -> dict[str, float]:
        """TFLOP/s by precision."""
        return {"bf16": self.tflops, "fp32": self.fp32_tflops}

    def hours(self, works: Iterable[Work]) -> float:
        """Hours of work that is done one after the other."""
        return sum(w.flops / (self.peaks[w.precision] * 1e12 * self.mfu * 3600) for w in works)


@dataclass(frozen=True)
class Estimate:
    """All work of a campaign. `disk`: bytes by kind; `images`: by set."""

    plan: campaign.Plan
    recipe: Recipe
    parameters: int
    forward_flops: float
    work: tuple[Work, ...]
    cells: tuple[PlannedCell, ...]
    disk: dict[str, int]
    images: dict[str, int]

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return sum(work.steps for work in self.work)

    @property
    def checkpoints(self) -> int:
        """Bytes of a training's two latest checkpoints: fp32 weights and an optimizer's moments."""
        moments = 2 if "adamw" in self.recipe.optimizer.name else 1
        return 2 * (1 + moments) * 4 * self.parameters * (self.recipe.train.checkpoint_minutes > 0)

    @property
    def rows(self) -> int:
        """Stored predictions: images times models, over all sets."""
        return sum(work.rows for work in self.work)

    def hours_of(self, job: Job, device: Device) -> float:
        """Hours of a job on one GPU; those of the report, which needs none, are not known."""
        if job.stage == job_graph.EVALUATE:
            return job.portion * device.hours(self._by_set.get(job.set, ()))
        works = self._by_job.get(PREPARE if job.stage == job_graph.PREPARE else job.column, [])
        if job.stage == job_graph.TRAIN:
            works = [w for w in works if not w.evaluated_on and w.row in job.rows]
        return job.portion * device.hours(works)

    @cached_property
    def _by_job(self) -> Mapping[str, list[Work]]:
        """The work of `prepare`, and of each column."""
        return _grouped((work.job, work) for work in self.work)

    @cached_property
    def _by_set(self) -> Mapping[str, list[Work]]:
        """The work of columns, by the set that it evaluates models on."""
        return _grouped((work.evaluated_on, work) for work in self.work if work.job != PREPARE)


def _grouped(pairs: Iterable[tuple[str, Work]]) -> Mapping[str, list[Work]]:
    groups: dict[str, list[Work]] = {}
    for name, work in pairs:
        groups.setdefault(name, []).append(work)
    return groups


def of(plan: campaign.Plan) -> Estimate:
    """The estimate of a plan. Encoded sets count as they are, others as published.

    Raises ValueError where a set is neither encoded nor known, or its folder cannot be read.
    """
    recipe = Request(plan.name, plan.overrides).recipe(plan.methods[0])
    dataset = recipe.dataset
    labels = {name: labels_of(recipe, name) for name in plan.needed(dataset)}
    labelled = {}
    for name, numbers in labels.items():
        train, holdout = sets.split(numbers, dataset.holdout, dataset.seed)
        # The labels stand in for the pack, of which only the length is read.
        pack, tensor = numbers, torch.from_numpy(numbers)
        labelled[name] = LabelledSet(name, pack, tensor, None, train, holdout)  # type: ignore[arg-type]
    is_imagenet = dataset.kind == "imagenet"
    classes = len(imagenet.wnids()) if is_imagenet else int(labels[dataset.upstream].max()) + 1
    dry_run = DryRun(plan, labelled, classes)
    dry_run.run()
    images = {name: len(numbers) for name, numbers in labels.items()}
    width = models.head(dry_run.net).in_features
    return Estimate(
        plan,
        recipe,
        sum(parameter.numel() for parameter in dry_run.net.parameters()),
        dry_run.forward_flops,
        tuple(dry_run.work),
        tuple(dry_run.cells.values()),
        {
            "packs": sum(size_bytes(recipe, count) for count in images.values()),
            "weights": sum(cell.bytes for cell in dry_run.cells.values()),
            "features": sum(dry_run.features.values()) * width * 4,
            "predictions": sum(work.rows for work in dry_run.work) * ROW_BYTES,
        },
        images,
    )


def labels_of(recipe: Recipe, name: str) -> np.ndarray:
    """Labels (int64 [N]) of a set: its pack's, its folder's, or as many as were published.

    The classes of a published set are taken to be of one size, which matters only to the size of a
    hold-out.
    """
    dataset = recipe.dataset
    folder = packs.pack_folder(Path(recipe.runs), dataset, recipe.model, name)
    if (folder / MANIFEST).is_file():
        return Pack.open(folder).labels.astype(np.int64)
    if dataset.kind == "imagenet":
        return np.arange(imagenet.images(dataset, name)) % imagenet.classes(dataset, name)
    if dataset.kind == "emoji":
        styles = len(emoji.UPSTREAM) if name == dataset.upstream else 1
        return np.arange(dataset.classes * dataset.renderings * styles) % dataset.classes
    listing = folders.read(Path(dataset.root) / name)
    return np.array([item.label for item in listing.items])
