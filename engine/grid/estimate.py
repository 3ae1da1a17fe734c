"""What a campaign will cost, from counts: images x passes x operations of one forward pass.

Left out: a job's start-up, reading images, Fishers, CKA, the choices of greedy soups, the models of
other seeds in a Model Stock, distances and the report.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine import models
from engine.data import imagenet, packs
from engine.grid.campaign import Plan
from engine.machine.files import digest
from engine.machine.flops import PEAKS, of_image
from engine.measures import relations
from engine.methods.base import Derived
from engine.recipe import modules
from engine.recipe.schema import Recipe
from loaders import folders
from loaders.benchmarks import emoji
from loaders.pack import MANIFEST, Pack

ROW_BYTES = 42  # of a stored prediction: measured on files of 200 rows; larger files need less
CALIBRATION_BYTES = 156  # more with `evaluate.calibration`: measured on 8192 rows, 1000 classes
MFU = 0.4  # share of the peak that a campaign reaches
CORE_TFLOPS = 0.026  # that the demo reached on a core of an Intel Xeon at 2.1 GHz
PROCESS_GB = 3.0  # Python, torch, numba and compiled code
COPIES = 4  # of a model: weights, gradient and two moments of the optimizer
FULL_PASSES = 3.0  # of a user's method, whose file is not run: a forward and a backward pass


@dataclass(frozen=True)
class Part:
    """Work of one kind in one column, or in what all columns share.

    images: each counts once for each time that it passes a model. operations: of all passes.
    """

    name: str
    images: int
    operations: float
    precision: str


@dataclass(frozen=True)
class Device:
    """TFLOP/s that are reached in each precision. auto: the one that is chosen by itself there."""

    name: str
    bf16: float
    fp32: float
    auto: str = "bf16"

    def hours(self, parts: Iterable[Part]) -> float:
        """Hours of parts that are done one after the other."""
        rates = {"bf16": self.bf16, "fp32": self.fp32, "auto": getattr(self, self.auto)}
        return sum(part.operations / (rates[part.precision] * 1e12 * 3600) for part in parts)


def gpu(name: str, mfu: float = MFU) -> Device:
    """A GPU of NVIDIA's, of which a campaign reaches this share of the peak."""
    return Device(name, mfu * PEAKS[name]["bf16"], mfu * PEAKS[name]["fp32"])


def cpu(cores: int) -> Device:
    """So many cores of a CPU."""
    return Device(f"{cores} CPU cores", cores * CORE_TFLOPS, cores * CORE_TFLOPS, auto="fp32")


@dataclass(frozen=True)
class Estimate:
    """All work of a campaign: what all columns share, and each column's, of which the largest
    stands for all. images: by set. disk: bytes by kind."""

    plan: Plan
    parameters: int
    forward: float
    shared: Part
    columns: tuple[tuple[Part, ...], ...]
    images: dict[str, int]
    disk: dict[str, float]

    def column_hours(self, device: Device, gpus: int = 1) -> float:
        """Hours of the longest column, whose job has so many GPUs."""
        return max(map(device.hours, self.columns)) / gpus

    def hours(self, device: Device, gpus: int) -> float:
        """Hours of the campaign on so many GPUs, of which a job has several if columns are few."""
        each = max(1, gpus // len(self.columns))
        turns = math.ceil(len(self.columns) / (gpus // each))
        return device.hours([self.shared]) + turns * self.column_hours(device, each)

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
        for part in [self.shared, *(part for column in self.columns for part in column)]:
            groups.setdefault(part.name, []).append(part)
        return groups


def of(plan: Plan) -> Estimate:
    """The estimate of a plan; no user's file runs, and his method counts as plain fine-tuning.

    Encoded sets count as they are, others as published. Raises ValueError where a set is neither
    encoded nor known, or its folder cannot be read.
    """
    recipe = plan.recipe
    model, dataset, kind = recipe.model, recipe.dataset, recipe.evaluate.precision
    counts = {name: counts_of(recipe, name) for name in plan.needed}
    images = {name: of_images for name, (of_images, _) in counts.items()}
    _, classes = counts[dataset.upstream]  # the head's
    with torch.device("meta"):
        net = models.create(model, classes).eval()
    parameters, width = sum(p.numel() for p in net.parameters()), models.head(net).in_features
    forward = of_image(net, model.image_size)
    everywhere = sum(images[name] for name in dataset.places)  # whose features are stored
    columns, weights, predictions = [], 1, everywhere
    for column in plan.columns:
        cells = [cell.recipe for row in plan.cells(column) for cell in row.all()]
        judged = sum(_judged(cells[0], name, images[name]) for name in dataset.places)
        judged += sum(_seen(cells[0], name, images[name]) for name in dataset.places)
        trained_on = [_trained_on(cell, *counts[column.downstream]) for cell in cells]
        parts, files, rows = _of_column(cells, trained_on, judged, forward)
        columns.append(parts)
        weights += files
        predictions += rows
    row_bytes = ROW_BYTES + CALIBRATION_BYTES * recipe.evaluate.calibration
    disk = {
        "packs": float(sum(packs.size_bytes(recipe, count) for count in images.values())),
        "weights": 4.0 * parameters * weights,
        "features": 4.0 * width * everywhere,
        "predictions": float(row_bytes * predictions),
    }
    shared = Part("pre-trained model", everywhere, everywhere * forward, kind)
    return Estimate(plan, parameters, forward, shared, tuple(columns), images, disk)


def _of_column(
    cells: Sequence[Recipe], trained_on: Sequence[int], judged: int, forward: float
) -> tuple[tuple[Part, ...], int, int]:
    """The parts of a column, and how many files of weights and rows of predictions it leaves.

    trained_on: images of each cell. judged: images that each model is evaluated on.
    """
    distinct = {}
    for cell, images in zip(cells, trained_on, strict=True):
        # Two rows may call one cell by two titles.
        untitled = dataclasses.replace(cell.method, title="")
        key = dataclasses.asdict(dataclasses.replace(cell, method=untitled))
        distinct[digest(key)] = cell, images
    parts, networks, extra, weights = [], 0, 0, 0  # fitted heads and ensembles need no pass
    for cell, images in distinct.values():
        is_users = modules.is_users(cell.method.module)
        method = None if is_users else modules.method_of(cell)
        if isinstance(method, Derived):
            networks += method.models
            extra += not method.models
            weights += cell.method.has_weights
            continue
        passes = FULL_PASSES if method is None else method.passes
        # A head alone is fitted on stored features, and evaluated from them.
        seen = cell.train.epochs * images if passes else 0
        title, operations = f"training: {cell.method.title}", seen * passes * forward
        parts.append(Part(title, seen, operations, cell.train.precision))
        networks += 1 + cell.train.snapshots if passes else 0
        extra += not passes
        weights += 1
    passed = networks * judged
    evaluation = Part("evaluation", passed, passed * forward, cells[0].evaluate.precision)
    return (*parts, evaluation), weights, (networks + extra) * judged


def _judged(recipe: Recipe, name: str, images: int) -> int:
    """How many images of a set a cell is evaluated on."""
    share = recipe.dataset.holdout if recipe.split_of(name) == "holdout" else 0
    return round(images * share) if share else images


def _seen(recipe: Recipe, name: str, images: int) -> int:
    """How many more images of a set a cell is evaluated on, since it saw their photos in another
    (`evaluate.seen`); mixes that tables do not show are counted too, and are not evaluated."""
    trained_on = recipe.downstream
    if not recipe.judges_seen or name == trained_on:
        return 0
    shares = not _photos(recipe, name).isdisjoint(_photos(recipe, trained_on))
    return images - _judged(recipe, name, images) if shares else 0


@functools.cache
def _photos_of_folder(root: Path) -> frozenset[str]:
    items = folders.read(root).items
    sources, labels = [item.source for item in items], [item.label for item in items]
    return relations.photos(np.array(sources), np.array(labels))


def _photos(recipe: Recipe, name: str) -> frozenset[str]:
    """The photos of a set, or a name for all of them."""
    dataset = recipe.dataset
    if dataset.kind == "imagenet":
        return frozenset(["imagenet_val" if name in imagenet.OF_VALIDATION else name])
    if dataset.kind == "emoji":
        styles, effect = emoji.styles_of(name, dataset.upstream)
        return frozenset(styles if effect else [name])
    return _photos_of_folder(Path(dataset.root) / name)


def _trained_on(recipe: Recipe, images: int, classes: int) -> int:
    """How many images a cell trains on, of a set of so many images and classes."""
    dataset = recipe.dataset
    part = images * (1 - dataset.holdout)
    part = round(min(part, dataset.train_images or part) * dataset.portion)
    return min(part, dataset.shots * classes or part)


def counts_of(recipe: Recipe, name: str) -> tuple[int, int]:
    """Images and classes of a set: of its pack, its folder, or as many as were published."""
    dataset = recipe.dataset
    folder = packs.pack_folder(Path(recipe.runs), dataset, recipe.model, name)
    if (folder / MANIFEST).is_file():
        pack = Pack.open(folder)
        return len(pack), len(pack.classes)
    if dataset.kind == "imagenet":
        return imagenet.images(dataset, name), imagenet.SIZES[name].classes
    if dataset.kind == "emoji":
        styles, _ = emoji.styles_of(name, dataset.upstream)
        return dataset.classes * dataset.renderings * len(styles), dataset.classes
    listing = folders.read(Path(dataset.root) / name)
    return len(listing.items), len(listing.classes)
