"""What a campaign costs, told before anything runs: images, operations, GPU-hours, disk and jobs.

Operations are counted on the architecture itself (`dry_run`); hours follow from an assumed
share of a device's peak, and are a prediction, not a measurement.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine import models
from engine.cost.disk import size_bytes
from engine.cost.dry_run import PREPARE, DryRun
from engine.cost.ledger import PlannedCell, Work
from engine.data import imagenet, packs, sets
from engine.data.sets import LabelledSet
from engine.grid import campaign
from engine.recipe.schema import Recipe
from loaders import folders
from loaders.benchmarks import emoji
from loaders.pack import MANIFEST, Pack

ROW_BYTES = 42  # of a stored prediction: measured on files of 200 rows; larger files need less
ORDER = ("features", "fisher", "training", "evaluation")
UNITS = {"hours": 1, "minutes": 60, "seconds": 3600}  # of one hour
KINDS = {
    "features": "features of the pre-trained model",
    "fisher": "Fisher",
    "evaluation": "evaluation",
}


@dataclass(frozen=True)
class Device:
    """The peaks of a GPU in TFLOP/s and the share of them that is assumed to be reached."""

    tflops: float = 312.0  # an A100, dense bf16: NVIDIA's data sheet
    fp32_tflops: float = 19.5  # the same, without TF32, which the engine switches off
    mfu: float = 0.4

    @property
    def peaks(self) -> dict[str, float]:
        """TFLOP/s by precision."""
        return {"bf16": self.tflops, "fp32": self.fp32_tflops}

    def hours(self, works: Iterable[Work]) -> float:
        """Of work, one after the other."""
        return sum(w.flops / (self.peaks[w.precision] * 1e12 * self.mfu * 3600) for w in works)


@dataclass(frozen=True)
class Estimate:
    """All work of a campaign. `disk`: bytes by kind. `cells`: what it makes, weights included."""

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
    def rows(self) -> int:
        """Predictions kept: images times models, over all sets."""
        return sum(work.rows for work in self.work)

    @property
    def jobs(self) -> int:
        """Jobs of the workflow: what all columns share, the columns, the report."""
        return len(self.plan.sets) + 2

    def flops(self, kind: str) -> float:
        """Operations of one kind of work."""
        return sum(work.flops for work in self.work if work.kind == kind)

    def hours_of(self, job: str, device: Device) -> float:
        """Of one job, on one GPU."""
        return device.hours(work for work in self.work if work.job == job)

    def hours(self, device: Device, gpus: int) -> float:
        """Until the last column ends, where each GPU takes the longest column that is left."""
        columns = [self.hours_of(name, device) for name in self.plan.sets]
        busy = [0.0] * gpus
        for column in sorted(columns, reverse=True):
            heapq.heappush(busy, heapq.heappop(busy) + column)
        return self.hours_of(PREPARE, device) + max(busy)


def of(plan: campaign.Plan) -> Estimate:
    """The estimate of a plan. Sets that are encoded count as they are, others as published.

    Raises ValueError where a set is neither encoded nor known, or its folder cannot be read.
    """
    recipe = DryRun(plan, {}, 0).recipe
    places = [recipe.dataset.upstream, *recipe.dataset.sets]
    labels = {name: labels_of(recipe, name) for name in places}
    dataset = recipe.dataset
    labelled = {}
    for name, own in labels.items():
        train, holdout = sets.split(own, dataset.holdout, dataset.seed)
        # Of a pack only its length is looked at, which the labels have too.
        labelled[name] = LabelledSet(name, own, torch.from_numpy(own), None, train, holdout)  # type: ignore[arg-type]
    is_imagenet = dataset.kind == "imagenet"
    classes = len(imagenet.wnids()) if is_imagenet else int(labels[dataset.upstream].max()) + 1
    dry_run = DryRun(plan, labelled, classes)
    dry_run.run()
    return Estimate(
        plan,
        recipe,
        sum(p.numel() for p in dry_run.net.parameters()),
        dry_run.forward_flops,
        tuple(dry_run.work),
        tuple(dry_run.cells.values()),
        _disk(recipe, dry_run, {name: len(own) for name, own in labels.items()}),
        {name: len(own) for name, own in labels.items()},
    )


def labels_of(recipe: Recipe, name: str) -> np.ndarray:
    """Labels (int64 [N]) of a set: its pack's, its folder's, or as many as were published.

    Published sets whose classes differ in size are taken to have classes of one size; this matters
    to the size of a hold-out alone.
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


def _disk(recipe: Recipe, dry_run: DryRun, images: dict[str, int]) -> dict[str, int]:
    width = models.head(dry_run.net).in_features
    return {
        "packs": sum(size_bytes(recipe, count) for count in images.values()),
        "weights": sum(made.bytes for made in dry_run.cells.values()),
        "features": sum(dry_run.features.values()) * width * 4,
        "predictions": sum(work.rows for work in dry_run.work) * ROW_BYTES,
    }


def text(one: Estimate, device: Device) -> str:
    """The estimate as `rib plan` prints it."""
    recipe = one.recipe
    unit = _unit(one.hours(device, 1))
    single = one.hours(device, 1) * UNITS[unit]
    rows: dict[str, list[Work]] = {}
    for work in sorted(one.work, key=lambda work: ORDER.index(work.kind)):
        rows.setdefault(KINDS.get(work.kind, f"training: {work.label}"), []).append(work)
    rows["all"] = list(one.work)
    lines = [
        f"{one.plan.name}: {recipe.model.name}, {len(one.plan.methods)} methods "
        f"x {len(one.plan.sets)} sets, variant {recipe.method.variant}",
        f"{one.parameters / 1e6:.1f}M parameters, {one.forward_flops / 1e9:.1f} GFLOP to see an "
        f"image of {recipe.model.image_size} px",
        "",
        f"{'':<36}{'images':>14}{'steps':>12}{'PFLOP':>12}{f'GPU-{unit}':>13}",
    ]
    for name, works in rows.items():
        images, steps = sum(work.images for work in works), sum(work.steps for work in works)
        flops, time = sum(work.flops for work in works), device.hours(works) * UNITS[unit]
        lines.append(f"{name:<36}{images:>14,}{steps:>12,}{flops / 1e15:>12,.3g}{time:>13,.3g}")
    points = [len(made.entries) for made in one.cells if made.entries and made.export is None]
    grid = len(one.plan.methods) * len(one.plan.sets) * one.plan.seeds
    trained = grid - len(points)
    beside = sum(made.export is not None for made in one.cells) - trained
    through = sum(work.images for work in one.work if work.kind == "evaluation")
    longest = max(one.plan.sets, key=lambda name: one.hours_of(name, device))
    disk = ", ".join(f"{name} {_size(size)}" for name, size in one.disk.items())
    lines += [
        "",
        f"{unit:<11}{single:,.3g} on one GPU; {one.hours(device, 8) * UNITS[unit]:,.3g} on eight, "
        f"a column each (the longest: {longest})",
        f"           predicted, at {device.mfu:.0%} of {_peaks(one, device)},",
        "           without reading images, starting kernels and the report's distances",
        f"jobs       {one.jobs}: what all share, {len(one.plan.sets)} columns, the report",
        f"cells      {grid}: {trained} trained, {len(points)} mixed in {sum(points)} points; and "
        f"{beside} models that they start from",
        f"evaluated  {one.rows:,} predictions, {through:,} of them through a whole model",
        f"disk       {_size(sum(one.disk.values()))}: {disk}",
    ]
    if any(made.chosen for made in one.cells):
        lines.append("           greedy choices depend on results: counted at their most")
    if recipe.evaluate.half_width is not None:
        lines.append("           evaluate.half_width may end it earlier: counted to the budget")
    return "\n".join(lines)


def total(found: Sequence[Estimate], device: Device) -> str:
    """What the grids of several models take together; models of one transform share packs."""
    packs = {models.transform(one.recipe.model): one.disk["packs"] for one in found}
    own = sum(sum(one.disk.values()) - one.disk["packs"] for one in found)
    one_gpu, eight = (sum(one.hours(device, gpus) for one in found) for gpus in (1, 8))
    unit = _unit(one_gpu)
    one_gpu, eight = one_gpu * UNITS[unit], eight * UNITS[unit]
    return (
        f"\nall {len(found)} models: {one_gpu:,.3g} {unit} on one GPU, {eight:,.3g} on eight; "
        f"{sum(one.jobs for one in found)} jobs; disk {_size(own + sum(packs.values()))}, packs of "
        f"{len(packs)} transforms among it"
    )


def _unit(hours: float) -> str:
    """The largest unit of which so many hours are at least one; seconds where none is."""
    return next((name for name, parts in UNITS.items() if hours * parts >= 1), "seconds")


def _peaks(one: Estimate, device: Device) -> str:
    used = sorted({work.precision for work in one.work})
    return " and ".join(f"{device.peaks[name]:g} TFLOP/s ({name})" for name in used)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
