"""Counts a campaign's work by job: images, operations, memory traffic and steps.

Left out: encoding packs, reading images, CKA (also of snapshots), and selection for greedy soups.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.cost import rates
from engine.data import packs, splits
from engine.data.kinds import kind_of
from engine.measures.rows import trained_sets
from engine.model_files.architectures import stored_architectures
from engine.recipe import kinds
from engine.recipe.finder import is_users
from engine.recipe.schema import ModelRecipe, Recipe
from loaders.pack import MANIFEST, Pack

FULL_PASSES = 3.0  # a forward and a backward pass; assumed for users' methods, which do not run
DISTANCE_SAMPLES = 10_000  # images per dataset, for distances


@dataclass(frozen=True)
class Work:
    """Work of one kind in one job.

    Attributes:
        images: training or evaluated images, each once per pass.
        operations, traffic: floating-point operations, and memory traffic in bytes (bf16).
        fp32: whether the passes are in fp32 on a GPU too.
        batches: training steps, or batches of evaluation.
        trained: parameters that each step updates and ranks exchange; 0 in evaluation.
        core_s, gpu_s: other work, in core-seconds of a job on a CPU, or seconds of a job on a GPU.
        graphs: names of the graphs that it runs.
        cell: of a training, the number of the column's cell that it is part of.
    """

    name: str
    images: int = 0
    operations: float = 0.0
    traffic: float = 0.0
    fp32: bool = False
    batches: float = 0.0
    trained: int = 0
    core_s: float = 0.0
    gpu_s: float = 0.0
    graphs: tuple[str, ...] = ()
    cell: int | None = None


START = Work("jobs start", core_s=rates.START_S, gpu_s=rates.START_S)  # of each job


class Size(NamedTuple):
    """The size of a dataset. held_out: images that training leaves out, unrounded."""

    images: int
    classes: int
    held_out: float


@dataclass(frozen=True)
class Network:
    """A recipe's network.

    parameters: their number. width: of the pre-logits. forward, elements: operations and elements
    of activations of one image's forward pass. core_share: rate of a forward pass on a CPU's core,
    in parts of `rates.product_tflops`.
    """

    parameters: int
    width: int
    forward: float
    elements: float
    core_share: float

    def with_head(self, classes: int) -> Network:
        """The network of these counts with a linear head on top."""
        return dataclasses.replace(
            self,
            parameters=self.parameters + classes * (self.width + 1),
            forward=self.forward + 2 * classes * self.width,
            elements=self.elements + self.width + classes,
        )

    def evaluated(self, name: str, images: int, recipe: Recipe) -> Work:
        """An evaluation of `images` forward passes in total."""
        traffic = rates.traffic(images * self.elements, compiled=True, training=False)
        batches, fp32 = images / recipe.evaluate.batch_size, recipe.evaluate.precision == "fp32"
        operations = images * self.forward
        return Work(name, images, operations, traffic, fp32, batches, graphs=("evaluation",))

    def trained(self, name: str, images: int, passes: float, recipe: Recipe) -> Work:
        """A training on `images` images in total, at `passes` forward passes per image."""
        traffic = rates.traffic(images * self.elements, compiled=True, training=True)
        traffic *= passes / FULL_PASSES
        batches, fp32 = images / recipe.train.batch_size, recipe.train.precision == "fp32"
        operations = passes * images * self.forward
        return Work(name, images, operations, traffic, fp32, batches, self.parameters)

    def fisher(self, images: int) -> Work:
        """A forward and a backward pass in fp32, a few images at a time."""
        traffic = rates.traffic(images * self.elements, compiled=False, training=True)
        return Work("EWC's Fisher", images, FULL_PASSES * images * self.forward, traffic, fp32=True)


def network(recipe: Recipe, classes: int) -> Network:
    """Counts a forward pass of the recipe's model with a head of `classes` outputs.

    A model whose counts are not stored is built, which takes seconds.
    """
    model = recipe.model
    stored = stored_architectures().get(model.arch, {"networks": {}})["networks"]
    if counts := stored.get(form_of(model)):
        return Network(**counts).with_head(classes)
    from engine.cost.flops import count_network  # here, because it imports torch

    return Network(*count_network(model)).with_head(classes)


def form_of(model: ModelRecipe) -> str:
    """The key, among an architecture's networks, of all else that determines the counts."""
    return f"{model.image_size} px, projection {model.projection}"


def graphs(parts: Iterable[Work]) -> Work:
    """The compilation of the graphs that these parts run."""
    return Work("graphs are compiled", gpu_s=_graphs(parts) * rates.GRAPH_S)


def in_a_job(parts: Sequence[Work]) -> list[Work]:
    """The work of a job that does these parts of a column's. Its process pays for graphs that the
    preparation has compiled: caches keep code, and Dynamo traces again."""
    return [START, Work(START.name, gpu_s=_graphs(parts) * rates.TRACE_S), *parts]


def graphs_of(cell: Recipe) -> tuple[str, ...]:
    """The graphs that a cell trains with. A user's method counts as fine-tuning."""
    return ("network",) if is_users(cell.method.module) else tuple(cell.method.graphs)


def _graphs(parts: Iterable[Work]) -> int:
    return len({name for part in parts for name in part.graphs})


def fishers(
    columns: Sequence[Sequence[Sequence[Recipe]]], images: Mapping[str, int], net: Network
) -> list[Work]:
    """Each Fisher that cells of EWC ask for. images: by dataset."""
    distinct = set()
    for cell in itertools.chain(*itertools.chain(*columns)):
        if "fisher_images" in (options := vars(cell.method)):
            most = sum(images[name] for name in trained_sets(cell.upstream))
            number = min(options["fisher_images"] or most, most)
            distinct.add((cell.upstream, number, options["fisher_labels"]))
    return [net.fisher(number) for _, number, _ in distinct]


def distances(recipe: Recipe, sizes: Mapping[str, Size]) -> Work:
    """The distance of each pair of datasets, including each with itself. sizes: by dataset."""
    core_s = gpu_s = 0.0
    for pair in itertools.combinations_with_replacement(recipe.dataset.evaluated_sets, 2):
        of_images = math.prod(min(sizes[name].images, DISTANCE_SAMPLES) for name in pair)
        of_classes = math.prod(sizes[name].classes for name in pair)
        core_s += rates.CLASS_PAIR_S * of_classes + rates.SAMPLE_PAIR_S * of_images
        gpu_s += rates.GPU_CLASS_PAIR_S * of_classes + rates.GPU_SAMPLE_PAIR_S * of_images
    return Work("distances", core_s=core_s, gpu_s=gpu_s)


def column(
    cells: Sequence[Sequence[Recipe]], sizes: Mapping[str, Size], net: Network
) -> tuple[list[Work], int, int]:
    """Returns the work of a column, its number of weight files, and of stored predictions.

    cells: each with the cells that it needs. The work is trainings, then the evaluation of each
    model.
    """
    distinct: dict[str, tuple[int, Recipe]] = {}
    evaluated = set[str]()
    # What a cell combines, its own row trains, if there is one.
    for number in sorted(range(len(cells)), key=lambda k: not cells[k][0].method.trains):
        # A digest of all settings would take most of the time of a large campaign's plan.
        keys = [repr(cell.untitled) for cell in cells[number]]
        for key, cell in zip(keys, cells[number], strict=True):
            distinct.setdefault(key, (number, cell))
        # Members run where a row averages outputs, and otherwise only if they are rows.
        evaluated |= set(keys if not cells[number][0].method.merged_models else keys[:1])
    # extra: models evaluated without a pass of their own (fitted heads and ensembles)
    work, networks, extra, weights = list[Work](), 0, 0, 0
    for key, (number, cell) in distinct.items():
        method, passes = cell.method, _passes(cell)
        if not method.trains:
            networks += method.merged_models
            extra += not method.merged_models
            weights += method.has_weights
            continue
        # A fitted head is trained and evaluated on stored features.
        of_trained = [sizes[name] for name in cell.trained_sets]
        images = cell.train.epochs * trained_on(cell, of_trained) if passes else 0
        training = net.trained(f"training: {method.title}", images, passes, cell)
        work.append(dataclasses.replace(training, graphs=graphs_of(cell), cell=number))
        weights += 1
        if key in evaluated:
            networks += 1 + cell.train.snapshots if passes else 0
            extra += not passes
    first = cells[0][0]
    each = sum(_judged(first, name, sizes[name]) for name in first.dataset.evaluated_sets)
    work += [net.evaluated("evaluation", each, first)] * networks
    return work, weights, (networks + extra) * each


def size_of(recipe: Recipe, name: str) -> Size:
    """The size of a dataset, from its pack, its folder or its publication."""
    dataset = kinds.of_set(recipe.dataset, name)
    folder = packs.pack_folder(recipe, name)
    if (folder / MANIFEST).is_file():
        pack = Pack.open(folder)
        images, classes = len(pack), len(pack.classes)
        held_out = len(splits.of_pack(pack, dataset)[2]) if dataset.split.column else 0
    else:
        kind = kind_of(recipe.dataset, name)
        (images, classes), held_out = kind.counts(), kind.held_out()
    share = held_out / images if held_out else dataset.holdout
    images = min(images, dataset.limit or images)
    return Size(images, classes, images * share)


def _passes(cell: Recipe) -> float:
    """The cost per training image, in forward passes; 0 without optimizer steps."""
    if is_users(cell.method.module):
        return FULL_PASSES
    return cell.method.passes + cell.method.stored_passes * bool(cell.train.augment)


def _judged(recipe: Recipe, name: str, size: Size) -> int:
    """The number of images of a dataset on which a cell is evaluated.

    Includes `evaluate.seen`, also for averages that are not the headline, although they skip it.
    """
    is_part = recipe.dataset.holdout and recipe.split_of(name) == "holdout"
    held_out = round(size.held_out) if is_part else size.images
    trained = recipe.trained_sets
    if not recipe.judges_seen or name in trained:
        return held_out
    photos, *of_trained = (kind_of(recipe.dataset, each).photos() for each in (name, *trained))
    return size.images if any(photos & each for each in of_trained) else held_out


def trained_on(recipe: Recipe, sizes: Sequence[Size]) -> int:
    """The number of training images of a cell, from its datasets' sizes, within an image a class.

    The datasets of a union count as having the same classes.
    """
    dataset = recipe.dataset
    parts = [size.images - size.held_out for size in sizes]
    part = sum(min(images, dataset.train_images or images) for images in parts)
    part = round(part * dataset.fraction)
    return min(part, dataset.shots * max(size.classes for size in sizes) or part)
