"""Predict a campaign's cost from counts of its work and the rates in `machine.rates`.

The counts are images, operations, memory traffic and steps. Jobs are then scheduled on the
available GPUs in the workflow's order. The estimate leaves out encoding packs, reading images, CKA,
selection for greedy soups, and a Model Stock's models with other seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import models
from engine.campaigns.plan import Plan
from engine.data import packs
from engine.data.kinds import kind_of
from engine.machine import precision, rates
from engine.machine.files import short_digest
from engine.machine.flops import elements_of_image, forward_tflops, of_image
from engine.methods.base import Derived
from engine.recipe import modules
from engine.recipe.schema import Recipe
from loaders.pack import MANIFEST, Pack

ROW_BYTES = 42  # per stored prediction: measured on files of 200 rows; larger files need less
CALIBRATION_BYTES = 156  # extra with `evaluate.calibration`: measured on 8192 rows, 1000 classes
PROCESS_GB = 3.0  # Python, torch, numba and compiled code
COPIES = 4  # of a model in training: weights, gradient and two moments of the optimizer
FULL_PASSES = 3.0  # a forward and a backward pass; assumed for users' methods, which do not run
STEP_BYTES = 28  # memory traffic of an optimizer's step per fp32 parameter
NODE_GPUS = 8  # a job runs on one node
DISTANCE_SAMPLES = 10_000  # images per dataset, for distances


@dataclass(frozen=True)
class Part:
    """Work of one kind in one job.

    Attributes:
        images: forward passes of one image.
        operations, traffic: floating-point operations, and memory traffic in bytes (bf16).
        precision: that of the passes.
        batches: training steps, or batches of evaluation.
        moved, exchanged: bytes per step that the optimizer moves through memory, and that ranks
            exchange.
        starts: number of job starts.
        graphs: number of compiled graphs.
        core_s: core-seconds of other work.
    """

    name: str
    images: int = 0
    operations: float = 0.0
    precision: str = "auto"
    traffic: float = 0.0
    batches: float = 0.0
    moved: float = 0.0
    exchanged: float = 0.0
    starts: int = 0
    graphs: int = 0
    core_s: float = 0.0


@dataclass(frozen=True)
class Device:
    """The speed of a device.

    bf16, fp32: achieved TFLOP/s of matrix products. memory, link: bandwidths in GB/s. step_s,
    batch_s, graph_s: the host's seconds per training step, evaluated batch and compiled graph.
    cores: CPU cores of a job. auto: the precision that `auto` selects.
    """

    name: str
    bf16: float
    fp32: float
    memory: float = math.inf
    link: float = math.inf
    step_s: float = 0.0
    batch_s: float = 0.0
    graph_s: float = 0.0
    cores: int = 1
    auto: str = "bf16"

    def seconds(self, part: Part, gpus: int = 1) -> float:
        """Seconds of a part, in a job on `gpus` GPUs.

        In evaluation, GPUs divide the batches. In training, they divide the images of each batch
        and exchange gradients in every step.
        """
        kind = self.auto if part.precision == "auto" else precision.of_products(part.precision)
        rate, width = (self.bf16, 1) if kind == "bf16" else (self.fp32, 2)
        work = part.operations / (1e12 * rate) + width * part.traffic / (1e9 * self.memory)
        step = part.moved / (1e9 * self.memory)
        step += 2 * (gpus - 1) / gpus * part.exchanged / (1e9 * self.link)
        if part.exchanged:
            busy = max(work / gpus + part.batches * step, part.batches * self.step_s)
        else:
            busy = max(work, part.batches * self.batch_s) / gpus
        cores = part.core_s + part.starts * rates.START_S
        return busy + cores / self.cores + part.graphs * self.graph_s

    def hours(self, parts: Iterable[Part], gpus: int = 1) -> float:
        """Hours of parts that run one after the other."""
        return sum(self.seconds(part, gpus) for part in parts) / 3600


def gpu(name: str) -> Device:
    """An NVIDIA GPU, by its name in `rates.CHIPS`."""
    return _of_chip(name, rates.CHIPS[name])


def users_gpu(tflops: float) -> Device:
    """A GPU with this data-sheet peak in bf16 TFLOP/s, otherwise a proportionally scaled H100."""
    like = rates.CHIPS["H100"]
    share = tflops / like.bf16
    chip = dataclasses.replace(
        like, bf16=tflops, fp32=share * like.fp32, memory=share * like.memory
    )
    return _of_chip("yours", chip)


def _of_chip(name: str, chip: rates.Chip) -> Device:
    reached = chip.reached() * chip.bf16, chip.reached() * chip.fp32
    host = rates.STEP_S, rates.BATCH_S, rates.GRAPH_S
    return Device(name, *reached, chip.memory, chip.link, *host)


def cpu(cores: int, core_tflops: float = rates.CORE_TFLOPS) -> Device:
    """CPU cores. core_tflops: the TFLOP/s that a campaign achieves per core."""
    rate, name = cores * core_tflops, "1 CPU core" if cores == 1 else f"{cores} CPU cores"
    return Device(name, rate, rate, cores=cores, auto="fp32")


def this_core(recipe: Recipe) -> Device:
    """A core of this machine, from its measured speed on the recipe's model. Takes seconds."""
    model = recipe.model
    layout = torch.channels_last if model.channels_last else torch.contiguous_format
    with torch.device("meta"):
        net = models.create(model, 2).eval()
    return cpu(1, rates.CORE_SHARE * forward_tflops(net, model.image_size, layout))


@dataclass(frozen=True)
class Estimate:
    """All work of a campaign, by job.

    parameters, forward: the model's parameters, and the operations of one image's forward pass.
    shared: work for all columns. columns: work of each column. distances: work of the
    distances between datasets.
    images: by dataset. disk: bytes by kind of artefact.
    """

    plan: Plan
    parameters: int
    forward: float
    shared: tuple[Part, ...]
    columns: tuple[tuple[Part, ...], ...]
    distances: tuple[Part, ...]
    images: dict[str, int]
    disk: dict[str, float]

    def column_hours(self, device: Device, gpus: int = 1) -> float:
        """Hours of the longest column, with this number of GPUs per job."""
        return max(device.hours(column, gpus) for column in self.columns)

    def gpus_of_a_job(self, gpus: int) -> int:
        """GPUs per column if the campaign has `gpus` GPUs.

        It is above 1 only if there are at least twice as many GPUs as columns. It is limited to one
        node and divides `batch_size / accumulation`.
        """
        train, most = self.plan.recipe.train, min(NODE_GPUS, gpus // len(self.columns))
        batch = train.batch_size // train.accumulation
        return max((n for n in range(1, most + 1) if batch % n == 0), default=1)

    def idle(self, gpus: int) -> int:
        """The number of GPUs that get no column."""
        each = self.gpus_of_a_job(gpus)
        return gpus - each * min(len(self.columns), gpus // each)

    def hours(self, device: Device, gpus: int) -> float:
        """Hours of the campaign on this number of GPUs.

        If all GPUs are busy, a job starts when an earlier one ends.
        """
        each = self.gpus_of_a_job(gpus)
        columns = [device.hours(column, each) for column in self.columns]
        jobs = [*columns, self.distances_hours(device)]
        return device.hours(self.shared) + _side_by_side(jobs, gpus // each)

    def hours_on_cores(self, core: Device, cores: int) -> float:
        """Hours of the campaign on this number of cores.

        Each job uses the plan's number of threads.
        """
        each = min(cores, self.plan.threads)
        job = cpu(each, core.fp32)
        jobs = [*map(job.hours, self.columns), self.distances_hours(job)]
        return job.hours(self.shared) + _side_by_side(jobs, cores // each)

    def distances_hours(self, device: Device) -> float:
        """Hours of the distances between datasets, on CPU cores. A GPU takes less."""
        cores = device.cores if device.auto == "fp32" else rates.DISTANCE_CORES
        return cpu(cores).hours(self.distances)

    @property
    def memory_gb(self) -> float:
        """Memory of a job in GB, on the host and, for a job on a GPU, on the GPU.

        The sum of the process, a model in training, the model batch, a batch's activations (a
        hundred times its images), and the largest dataset that is trained on or evaluated (uint8).
        """
        recipe = self.plan.recipe
        # Other datasets are streamed.
        sets = {*recipe.dataset.evaluated_sets, *self.plan.downstreams}
        image = 3 * recipe.model.image_size**2
        batch = max(recipe.train.batch_size, recipe.evaluate.batch_size) * image * 4 * 100
        copies = (COPIES + len(self.plan.rows)) * self.parameters * 4
        return PROCESS_GB + (copies + batch + max(self.images[name] for name in sets) * image) / 1e9

    def by_name(self) -> dict[str, list[Part]]:
        """The parts grouped by name, in order."""
        groups: dict[str, list[Part]] = {}
        for part in itertools.chain(self.shared, *self.columns, self.distances):
            groups.setdefault(part.name, []).append(part)
        return groups


def _side_by_side(hours: Sequence[float], places: int) -> float:
    """Hours of all jobs, of which `places` run in parallel."""
    free = [0.0] * places
    for job in hours:
        free[free.index(min(free))] += job
    return max(free)


@dataclass(frozen=True)
class _Model:
    """A recipe's network.

    parameters: their number. width: of the pre-logits. forward, elements: operations and elements
    of activations of one image's forward pass.
    """

    parameters: int
    width: int
    forward: float
    elements: float

    def evaluated(self, name: str, images: int, recipe: Recipe) -> Part:
        """An evaluation of `images` forward passes in total."""
        traffic = rates.traffic(images * self.elements, compiled=True, training=False)
        batches = images / recipe.evaluate.batch_size
        kind = recipe.evaluate.precision
        return Part(name, images, images * self.forward, kind, traffic, batches)

    def trained(self, name: str, seen: int, passes: float, recipe: Recipe) -> Part:
        """A training that sees `seen` images in total, at `passes` forward passes per image."""
        share = passes / FULL_PASSES
        traffic = share * rates.traffic(seen * self.elements, compiled=True, training=True)
        steps = seen / recipe.train.batch_size
        weights = {"moved": STEP_BYTES * self.parameters, "exchanged": 4 * self.parameters}
        operations, kind = seen * passes * self.forward, recipe.train.precision
        return Part(name, seen, operations, kind, traffic, steps, **weights if passes else {})


def of(plan: Plan) -> Estimate:
    """Estimate the cost of a plan.

    Users' method files do not run; their methods count as plain fine-tuning. Encoded datasets count
    with their actual size, others with their published size. Raises ValueError if a dataset is
    neither encoded nor known, or its folder cannot be read.
    """
    recipe = plan.recipe
    dataset = recipe.dataset
    counts = {name: counts_of(recipe, name) for name in plan.needed}
    images = {name: of_images for name, (of_images, _) in counts.items()}
    model = _model(recipe, counts[dataset.upstream][1])
    everywhere = sum(images[name] for name in recipe.base_sets)  # images with stored features
    columns, weights = [], 1
    predictions = sum(images[name] for name in dataset.evaluated_sets)
    cells: list[Recipe] = []
    fishers: dict[int, Part] = {}
    for column in plan.columns:
        cells = [cell.recipe for row in plan.cells(column) for cell in row.all()]
        judged = sum(_judged(cells[0], name, images[name]) for name in dataset.evaluated_sets)
        judged += sum(_seen(cells[0], name, images[name]) for name in dataset.evaluated_sets)
        trained_on = [_trained_on(cell, *counts[column.downstream]) for cell in cells]
        parts, files, rows = _of_column(cells, trained_on, judged, model)
        columns.append((Part("jobs start", starts=1), *parts))
        weights += files
        predictions += rows
        for cell in cells:
            if (asked := getattr(cell.method, "fisher_images", None)) is not None:
                most = images[dataset.upstream]
                fishers[asked] = _fisher(min(asked or most, most), model)
    row_bytes = ROW_BYTES + CALIBRATION_BYTES * recipe.evaluate.calibration
    disk = {
        "packs": float(sum(packs.size_bytes(recipe, count) for count in images.values())),
        "weights": 4.0 * model.parameters * weights,
        "features": 4.0 * model.width * everywhere,
        "predictions": float(row_bytes * predictions),
    }
    shared = (
        Part("jobs start", starts=1),
        Part("graphs are compiled", graphs=_graphs(cells)),
        model.evaluated("pretrained model", everywhere, recipe),
        *fishers.values(),
    )
    distances = (Part("distances", starts=1, core_s=sum(_distances(recipe, counts))),)
    work = shared, tuple(columns), distances
    return Estimate(plan, model.parameters, model.forward, *work, images, disk)


def _model(recipe: Recipe, classes: int) -> _Model:
    size = recipe.model.image_size
    with torch.device("meta"):
        net = models.create(recipe.model, classes).eval()
    width = models.head(net).in_features
    counted = of_image(net, size), elements_of_image(net, size)
    return _Model(sum(p.numel() for p in net.parameters()), width, *counted)


def _fisher(images: int, model: _Model) -> Part:
    """A forward and a backward pass in fp32, one image at a time."""
    traffic = rates.traffic(images * model.elements, compiled=False, training=True)
    operations = FULL_PASSES * images * model.forward
    return Part("EWC's Fisher", images, operations, "fp32", traffic)


def _graphs(cells: Sequence[Recipe]) -> int:
    """The number of compiled graphs: one for evaluation, one for all methods that train whole
    networks, and one per method that trains less."""
    passes = {cell.method.module: _passes(cell) for cell in cells}
    whole = FULL_PASSES in passes.values()
    return 1 + whole + sum(0 < count < FULL_PASSES for count in passes.values())


def _passes(cell: Recipe) -> float:
    """The cost per training image, in forward passes; 0 without optimizer steps."""
    if modules.is_users(cell.method.module):
        return FULL_PASSES
    method = modules.method_of(cell)
    return 0.0 if isinstance(method, Derived) else method.passes


def _distances(recipe: Recipe, counts: dict[str, tuple[int, int]]) -> Iterator[float]:
    """Core-seconds of the distance of each pair of datasets, including each with itself."""
    for pair in itertools.combinations_with_replacement(recipe.dataset.evaluated_sets, 2):
        images, classes = zip(*(counts[name] for name in pair), strict=True)
        samples = math.prod(min(count, DISTANCE_SAMPLES) for count in images)
        yield rates.CLASS_PAIR_S * math.prod(classes) + rates.SAMPLE_PAIR_S * samples


def _of_column(
    cells: Sequence[Recipe], trained_on: Sequence[int], judged: int, model: _Model
) -> tuple[tuple[Part, ...], int, int]:
    """The parts of a column, its number of weight files, and its number of stored predictions.

    trained_on: training images of each cell. judged: images on which each model is evaluated.
    """
    distinct = {}
    for cell, images in zip(cells, trained_on, strict=True):
        # Two rows may have the same cell under different titles.
        untitled = dataclasses.replace(cell.method, title="")
        key = dataclasses.asdict(dataclasses.replace(cell, method=untitled))
        distinct[short_digest(key)] = cell, images
    # extra: models evaluated without a pass of their own (fitted heads and ensembles)
    parts, networks, extra, weights = [], 0, 0, 0
    for cell, images in distinct.values():
        is_users = modules.is_users(cell.method.module)
        method = None if is_users else modules.method_of(cell)
        if isinstance(method, Derived):
            networks += method.models
            extra += not method.models
            weights += cell.method.has_weights
            continue
        passes = _passes(cell)
        # A fitted head is trained and evaluated on stored features.
        seen = cell.train.epochs * images if passes else 0
        parts.append(model.trained(f"training: {cell.method.title}", seen, passes, cell))
        networks += 1 + cell.train.snapshots if passes else 0
        extra += not passes
        weights += 1
    evaluation = model.evaluated("evaluation", networks * judged, cells[0])
    return (*parts, evaluation), weights, (networks + extra) * judged


def _judged(recipe: Recipe, name: str, images: int) -> int:
    """The number of images of a dataset on which a cell is evaluated."""
    share = recipe.dataset.holdout if recipe.split_of(name) == "holdout" else 0
    return round(images * share) if share else images


def _seen(recipe: Recipe, name: str, images: int) -> int:
    """The number of further images on which a cell is evaluated since it trained on their photos in
    another dataset (`evaluate.seen`).

    It also counts averages that are not the headline, although they skip this evaluation.
    """
    trained_on = recipe.downstream
    if not recipe.judges_seen or name == trained_on:
        return 0
    kind = kind_of(recipe.dataset)
    shares = not kind.photos(name).isdisjoint(kind.photos(trained_on))
    return images - _judged(recipe, name, images) if shares else 0


def _trained_on(recipe: Recipe, images: int, classes: int) -> int:
    """The number of training images of a cell, from its dataset's images and classes."""
    dataset = recipe.dataset
    part = images * (1 - dataset.holdout)
    part = round(min(part, dataset.train_images or part) * dataset.portion)
    return min(part, dataset.shots * classes or part)


def counts_of(recipe: Recipe, name: str) -> tuple[int, int]:
    """Numbers of images and classes of a dataset, from its pack, its folder or its publication."""
    images, classes = _whole(recipe, name)
    return min(images, recipe.dataset.limit or images), classes


def _whole(recipe: Recipe, name: str) -> tuple[int, int]:
    dataset = recipe.dataset
    folder = packs.pack_folder(Path(recipe.runs), dataset, recipe.model, name)
    if (folder / MANIFEST).is_file():
        pack = Pack.open(folder)
        return len(pack), len(pack.classes)
    return kind_of(dataset).counts(name)
