"""What a campaign will cost, from counts: images x passes x operations of one forward pass.

Left out: a job's start-up, reading images, Fishers, CKA, the choices of greedy soups, distances and
the report.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import models
from engine.data import imagenet, packs
from engine.grid.campaign import Plan
from engine.grid.cell_plan import CellPlan
from engine.machine.files import digest
from engine.machine.flops import PEAKS, flops
from engine.methods.base import Derived
from engine.recipe import modules
from engine.recipe.schema import ModelRecipe, Recipe
from engine.training.schedule import total_steps
from loaders import folders
from loaders.benchmarks import emoji
from loaders.pack import MANIFEST, Pack

ROW_BYTES = 42  # of a stored prediction: measured on files of 200 rows; larger files need less
MFU = 0.4  # share of the peak that a campaign reaches
CORE_TFLOPS = 0.026  # that the demo reached on a core of an Intel Xeon at 2.1 GHz
PROCESS_GB = 3.0  # Python, torch, numba and compiled code
COPIES = 4  # of a model: weights, gradient and two moments of the optimizer
FULL_PASSES = 3.0  # of a user's method, whose file is not run: a forward and a backward pass


@dataclass(frozen=True)
class Device:
    """TFLOP/s that are reached in each precision. is_gpu: bf16 is chosen by itself there."""

    name: str
    bf16: float
    fp32: float
    is_gpu: bool = True

    def hours(self, operations: float, kind: str) -> float:
        """Hours of so many operations. kind: a recipe's precision, auto | bf16 | fp32."""
        kind = ("bf16" if self.is_gpu else "fp32") if kind == "auto" else kind
        return operations / (getattr(self, kind) * 1e12 * 3600)


def gpu(name: str, mfu: float = MFU) -> Device:
    """A GPU of NVIDIA's, of which a campaign reaches this share of the peak."""
    return Device(name, mfu * PEAKS[name]["bf16"], mfu * PEAKS[name]["fp32"])


A100, H100 = gpu("A100"), gpu("H100")


def cpu(cores: int) -> Device:
    """So many cores of a CPU."""
    return Device(f"{cores} CPU cores", cores * CORE_TFLOPS, cores * CORE_TFLOPS, is_gpu=False)


@dataclass(frozen=True)
class Part:
    """Work of one kind in one column, or in what all columns share.

    images: each counts once for each time that it passes a model. operations: of all passes.
    """

    name: str
    images: int
    operations: float
    precision: str
    steps: int = 0


@dataclass(frozen=True)
class Estimate:
    """All work of a campaign: what all columns share, and each column's, of which the largest
    stands for all. images: by set. disk: bytes by kind."""

    plan: Plan
    parameters: int
    forward: float
    shared: tuple[Part, ...]
    columns: tuple[tuple[Part, ...], ...]
    images: dict[str, int]
    disk: dict[str, float]

    def prepare_hours(self, device: Device) -> float:
        return hours(self.shared, device)

    def column_hours(self, device: Device, gpus: int = 1) -> float:
        """Hours of the longest column, whose job has so many GPUs."""
        return max(hours(parts, device) for parts in self.columns) / gpus

    def hours(self, device: Device, gpus: int) -> float:
        """Hours of the campaign on so many GPUs, of which a job has several if columns are few."""
        each = max(1, gpus // len(self.columns))
        turns = math.ceil(len(self.columns) / (gpus // each))
        return self.prepare_hours(device) + turns * self.column_hours(device, each)

    @property
    def memory_gb(self) -> float:
        """Of a job: the process, a model in training, those of the bank, a batch's activations at
        a hundred times its images, and the largest set (uint8)."""
        recipe = self.plan.recipe
        image = 3 * recipe.model.image_size**2
        batch = max(recipe.train.batch_size, recipe.evaluate.batch_size) * image * 4 * 100
        copies = (COPIES + len(self.plan.rows)) * self.parameters * 4
        return PROCESS_GB + (copies + batch + max(self.images.values()) * image) / 1e9

    def by_name(self) -> dict[str, list[Part]]:
        """The parts of the same name together, in their order."""
        groups: dict[str, list[Part]] = {}
        for part in [*self.shared, *(part for column in self.columns for part in column)]:
            groups.setdefault(part.name, []).append(part)
        return groups


def hours(parts: Sequence[Part], device: Device) -> float:
    """Hours of parts that are done one after the other."""
    return sum(device.hours(part.operations, part.precision) for part in parts)


def of(plan: Plan) -> Estimate:
    """The estimate of a plan; no user's file runs, and his method counts as plain fine-tuning.

    Encoded sets count as they are, others as published. Raises ValueError where a set is neither
    encoded nor known, or its folder cannot be read.
    """
    recipe = plan.recipe
    dataset, kind = recipe.dataset, recipe.evaluate.precision
    images = {name: images_of(recipe, name) for name in plan.needed}
    classes = len(imagenet.wnids()) if dataset.kind == "imagenet" else dataset.classes or 1000
    arch = (recipe.model.arch, recipe.model.image_size, recipe.model.projection)
    parameters, width, forward = _network(*arch, classes)
    everywhere = sum(images[name] for name in dataset.places)
    columns, trained, predicted = [], 0, 0
    for column in plan.columns:
        parts, models_seen = [], 0
        cells = {_what(cell.recipe): cell for row in plan.cells(column) for cell in row.all()}
        for cell in cells.values():
            part, seen, weights = _of_cell(cell, images[column.downstream], forward)
            parts += [part] if part else []
            models_seen += seen
            predicted += max(1, seen)  # of a fitted head and an ensemble too, which need no pass
            trained += weights
        operations = models_seen * everywhere * forward
        columns.append((*parts, Part("evaluation", models_seen * everywhere, operations, kind)))
    shared = (Part("pre-trained model", everywhere, everywhere * forward, kind),)
    disk = {
        "packs": float(sum(packs.size_bytes(recipe, count) for count in images.values())),
        "weights": 4.0 * parameters * (1 + trained),
        "features": 4.0 * width * everywhere,
        "predictions": float(ROW_BYTES * everywhere * (1 + predicted)),
    }
    return Estimate(plan, parameters, forward, shared, tuple(columns), images, disk)


def _what(recipe: Recipe) -> str:
    """The same for rows that call the same cell by two titles."""
    untitled = dataclasses.replace(recipe.method, title="")
    return digest(dataclasses.asdict(dataclasses.replace(recipe, method=untitled)))


def _of_cell(cell: CellPlan, images: int, forward: float) -> tuple[Part | None, int, int]:
    """A cell's training, the models of it that pass over all sets, and its files of weights."""
    recipe = cell.recipe
    method = None
    if not modules.is_users(recipe.method.module):
        method = modules.method_of(recipe)
    if isinstance(method, Derived):
        return None, method.models, int(recipe.method.has_weights)
    passes = FULL_PASSES if method is None else method.passes
    train, dataset = recipe.train, recipe.dataset
    seen = round(images * (1 - dataset.holdout) * dataset.portion)
    seen = min(seen, dataset.train_images or seen)
    epochs = train.epochs if passes else 0
    steps = total_steps(train, seen) if passes else 0
    name = f"training: {recipe.method.title}"
    operations = epochs * seen * passes * forward
    part = Part(name, epochs * seen, operations, train.precision, steps)
    return part, (1 + train.snapshots if passes else 0), 1


@functools.lru_cache(maxsize=64)
def _network(arch: str, image_size: int, projection: int, classes: int) -> tuple[int, int, float]:
    """Parameters of a model, its features' width, and the operations to see one image."""
    model = ModelRecipe(name=arch, arch=arch, image_size=image_size, projection=projection)
    with torch.device("meta"):
        net = models.create(model, classes).eval()
        image = torch.empty(1, 3, image_size, image_size)
    with torch.inference_mode():
        forward = flops(lambda: net(image))
    return sum(p.numel() for p in net.parameters()), models.head(net).in_features, forward


def images_of(recipe: Recipe, name: str) -> int:
    """Images of a set: of its pack, its folder, or as many as were published."""
    dataset = recipe.dataset
    folder = packs.pack_folder(Path(recipe.runs), dataset, recipe.model, name)
    if (folder / MANIFEST).is_file():
        return len(Pack.open(folder))
    if dataset.kind == "imagenet":
        return imagenet.images(dataset, name)
    if dataset.kind == "emoji":
        styles = len(emoji.UPSTREAM) if name == dataset.upstream else 1
        return dataset.classes * dataset.renderings * styles
    return len(folders.read(Path(dataset.root) / name).items)
