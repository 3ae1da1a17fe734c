"""Predict a campaign's cost by simulating its workflow with counts and `machine.rates`.

Work is counted: images, operations and memory traffic of passes, steps. Jobs then start in the
workflow's order on the GPUs that there are. Left out: encoding packs, reading images, CKA, choices
of greedy soups, models of other seeds in a Model Stock.
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
from engine.data import packs
from engine.data.kinds import kind_of
from engine.grid.campaign import Plan
from engine.machine import precision, rates
from engine.machine.files import short_digest
from engine.machine.flops import elements_of_image, forward_tflops, of_image
from engine.methods.base import Derived
from engine.recipe import modules
from engine.recipe.schema import Recipe
from loaders.pack import MANIFEST, Pack

ROW_BYTES = 42  # of a stored prediction: measured on files of 200 rows; larger files need less
CALIBRATION_BYTES = 156  # more with `evaluate.calibration`: measured on 8192 rows, 1000 classes
PROCESS_GB = 3.0  # Python, torch, numba and compiled code
COPIES = 4  # of a model: weights, gradient and two moments of the optimizer
FULL_PASSES = 3.0  # of a user's method, whose file is not run: a forward and a backward pass
STEP_BYTES = 28  # of an fp32 parameter in an optimizer's step, and 4 that ranks exchange
NODE_GPUS = 8  # a job has those of one node
DISTANCE_SAMPLES = 10_000  # of a set, in the report


@dataclass(frozen=True)
class Part:
    """Work of one kind in one job.

    images: each counts once for each time that it passes a model. operations, traffic (bytes in
    bf16): of all passes. batches: steps, or batches through a model. moved, exchanged: bytes of
    weights that a step moves through memory, and that ranks exchange. starts: of a job. graphs:
    that are compiled. core_s: seconds of a core.
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
    """A device. bf16, fp32: TFLOP/s that matrix products reach. memory, link: GB/s. step_s,
    batch_s, graph_s: seconds that the host takes. cores: that a job's own work has. auto: the
    precision that is chosen by itself."""

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
        """For a part, in a job on `gpus` GPUs: they share batches in evaluation, and the images of
        a batch in training, whose gradients they exchange in every step."""
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
        """Hours of parts that are done one after the other."""
        return sum(self.seconds(part, gpus) for part in parts) / 3600


def gpu(name: str) -> Device:
    """A GPU of NVIDIA's."""
    return _of_chip(name, rates.CHIPS[name])


def users_gpu(tflops: float) -> Device:
    """A GPU with this data sheet peak in bf16 TFLOP/s; all else in proportion to an H100."""
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
    """So many cores of a CPU. core_tflops: that a campaign's work reaches on one of them."""
    rate, name = cores * core_tflops, "1 CPU core" if cores == 1 else f"{cores} CPU cores"
    return Device(name, rate, rate, cores=cores, auto="fp32")


def this_core(recipe: Recipe) -> Device:
    """A core of this machine, by how fast it runs the recipe's model: seconds of measuring."""
    model = recipe.model
    layout = torch.channels_last if model.channels_last else torch.contiguous_format
    with torch.device("meta"):
        net = models.create(model, 2).eval()
    return cpu(1, rates.CORE_SHARE * forward_tflops(net, model.image_size, layout))


@dataclass(frozen=True)
class Estimate:
    """All work of a campaign by job: what all columns share, each column, the report. images: by
    set. disk: bytes by kind."""

    plan: Plan
    parameters: int
    forward: float
    shared: tuple[Part, ...]
    columns: tuple[tuple[Part, ...], ...]
    report: tuple[Part, ...]
    images: dict[str, int]
    disk: dict[str, float]

    def column_hours(self, device: Device, gpus: int = 1) -> float:
        """Hours of the longest column, with this number of GPUs per job."""
        return max(device.hours(column, gpus) for column in self.columns)

    def gpus_of_a_job(self, gpus: int) -> int:
        """How many GPUs a column's job has, of so many: several where columns are few, but no more
        than a node has, and so many that they divide the batch."""
        train, most = self.plan.recipe.train, min(NODE_GPUS, gpus // len(self.columns))
        batch = train.batch_size // train.accumulation
        return max((n for n in range(1, most + 1) if batch % n == 0), default=1)

    def idle(self, gpus: int) -> int:
        """The number of GPUs without a column."""
        each = self.gpus_of_a_job(gpus)
        return gpus - each * min(len(self.columns), gpus // each)

    def hours(self, device: Device, gpus: int) -> float:
        """Hours of the campaign on this number of GPUs. A column starts when an earlier one
        ends."""
        each = self.gpus_of_a_job(gpus)
        columns = self._columns(device, each, gpus // each)
        return device.hours(self.shared) + columns + self.report_hours(device)

    def hours_on_cores(self, core: Device, cores: int) -> float:
        """Hours of the campaign on this number of cores, of which each job has the plan's threads
        and the report all."""
        each = min(cores, self.plan.threads)
        job = cpu(each, core.fp32)
        columns = self._columns(job, 1, cores // each)
        return job.hours(self.shared) + columns + self.report_hours(cpu(cores))

    def _columns(self, device: Device, gpus: int, places: int) -> float:
        """Hours of all columns with this number in parallel."""
        free = [0.0] * places
        for column in self.columns:
            free[free.index(min(free))] += device.hours(column, gpus)
        return max(free)

    def report_hours(self, device: Device) -> float:
        """Hours of the report, on cores."""
        cores = device.cores if device.auto == "fp32" else rates.REPORT_CORES
        return cpu(cores).hours(self.report)

    @property
    def memory_gb(self) -> float:
        """Of a job, of the host and on a GPU of the GPU too: the process, a model in training,
        those of the bank, a batch's activations at a hundred times its images, and the largest set
        that is trained on or evaluated (uint8)."""
        recipe = self.plan.recipe
        # Another one is read as a stream.
        sets = {*recipe.dataset.evaluated_sets, *self.plan.downstreams}
        image = 3 * recipe.model.image_size**2
        batch = max(recipe.train.batch_size, recipe.evaluate.batch_size) * image * 4 * 100
        copies = (COPIES + len(self.plan.rows)) * self.parameters * 4
        return PROCESS_GB + (copies + batch + max(self.images[name] for name in sets) * image) / 1e9

    def by_name(self) -> dict[str, list[Part]]:
        """The parts of the same name together, in their order."""
        groups: dict[str, list[Part]] = {}
        for part in itertools.chain(self.shared, *self.columns, self.report):
            groups.setdefault(part.name, []).append(part)
        return groups


@dataclass(frozen=True)
class _Model:
    """A recipe's network: parameters, and operations and elements of an image's forward pass."""

    parameters: int
    width: int
    forward: float
    elements: float

    def evaluated(self, name: str, images: int, recipe: Recipe) -> Part:
        """Images through models that are evaluated."""
        traffic = rates.traffic(images * self.elements, compiled=True, training=False)
        batches = images / recipe.evaluate.batch_size
        kind = recipe.evaluate.precision
        return Part(name, images, images * self.forward, kind, traffic, batches)

    def trained(self, name: str, seen: int, passes: float, recipe: Recipe) -> Part:
        """A training on this number of images in consecutive epochs."""
        share = passes / FULL_PASSES
        traffic = share * rates.traffic(seen * self.elements, compiled=True, training=True)
        steps = seen / recipe.train.batch_size
        weights = {"moved": STEP_BYTES * self.parameters, "exchanged": 4 * self.parameters}
        operations, kind = seen * passes * self.forward, recipe.train.precision
        return Part(name, seen, operations, kind, traffic, steps, **weights if passes else {})


def of(plan: Plan) -> Estimate:
    """The estimate of a plan; no user's file runs, and his method counts as plain fine-tuning.

    Encoded sets count as they are, others as published. Raises ValueError where a set is neither
    encoded nor known, or its folder cannot be read.
    """
    recipe = plan.recipe
    dataset = recipe.dataset
    counts = {name: counts_of(recipe, name) for name in plan.needed}
    images = {name: of_images for name, (of_images, _) in counts.items()}
    model = _model(recipe, counts[dataset.upstream][1])
    everywhere = sum(images[name] for name in recipe.base_sets)  # whose features are stored
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
        model.evaluated("pre-trained model", everywhere, recipe),
        *fishers.values(),
    )
    report = (Part("report: distances", starts=1, core_s=sum(_distances(recipe, counts))),)
    work = shared, tuple(columns), report
    return Estimate(plan, model.parameters, model.forward, *work, images, disk)


def _model(recipe: Recipe, classes: int) -> _Model:
    size = recipe.model.image_size
    with torch.device("meta"):
        net = models.create(recipe.model, classes).eval()
    width = models.head(net).in_features
    counted = of_image(net, size), elements_of_image(net, size)
    return _Model(sum(p.numel() for p in net.parameters()), width, *counted)


def _fisher(images: int, model: _Model) -> Part:
    """A forward and a backward pass in fp32, image by image."""
    traffic = rates.traffic(images * model.elements, compiled=False, training=True)
    operations = FULL_PASSES * images * model.forward
    return Part("EWC's Fisher", images, operations, "fp32", traffic)


def _graphs(cells: Sequence[Recipe]) -> int:
    """How many graphs are compiled: of evaluation, of what trains whole networks, and of each
    method that trains less."""
    passes = {cell.method.module: _passes(cell) for cell in cells}
    whole = FULL_PASSES in passes.values()
    return 1 + whole + sum(0 < count < FULL_PASSES for count in passes.values())


def _passes(cell: Recipe) -> float:
    """The cost per training image, in forward passes; 0 if nothing trains by steps."""
    if modules.is_users(cell.method.module):
        return FULL_PASSES
    method = modules.method_of(cell)
    return 0.0 if isinstance(method, Derived) else method.passes


def _distances(recipe: Recipe, counts: dict[str, tuple[int, int]]) -> Iterator[float]:
    """Core-seconds of the distance of each pair of sets, each with itself too."""
    for pair in itertools.combinations_with_replacement(recipe.dataset.evaluated_sets, 2):
        images, classes = zip(*(counts[name] for name in pair), strict=True)
        samples = math.prod(min(count, DISTANCE_SAMPLES) for count in images)
        yield rates.CLASS_PAIR_S * math.prod(classes) + rates.SAMPLE_PAIR_S * samples


def _of_column(
    cells: Sequence[Recipe], trained_on: Sequence[int], judged: int, model: _Model
) -> tuple[tuple[Part, ...], int, int]:
    """The parts of a column, and how many files of weights and rows of predictions it leaves.

    trained_on: images of each cell. judged: images that each model is evaluated on.
    """
    distinct = {}
    for cell, images in zip(cells, trained_on, strict=True):
        # Two rows may call one cell by two titles.
        untitled = dataclasses.replace(cell.method, title="")
        key = dataclasses.asdict(dataclasses.replace(cell, method=untitled))
        distinct[short_digest(key)] = cell, images
    parts, networks, extra, weights = [], 0, 0, 0  # fitted heads and ensembles need no pass
    for cell, images in distinct.values():
        is_users = modules.is_users(cell.method.module)
        method = None if is_users else modules.method_of(cell)
        if isinstance(method, Derived):
            networks += method.models
            extra += not method.models
            weights += cell.method.has_weights
            continue
        passes = _passes(cell)
        # A head alone is fitted on stored features, and evaluated from them.
        seen = cell.train.epochs * images if passes else 0
        parts.append(model.trained(f"training: {cell.method.title}", seen, passes, cell))
        networks += 1 + cell.train.snapshots if passes else 0
        extra += not passes
        weights += 1
    evaluation = model.evaluated("evaluation", networks * judged, cells[0])
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
    kind = kind_of(recipe.dataset)
    shares = not kind.photos(name).isdisjoint(kind.photos(trained_on))
    return images - _judged(recipe, name, images) if shares else 0


def _trained_on(recipe: Recipe, images: int, classes: int) -> int:
    """The number of training images of a cell, for a dataset with this number of images and
    classes."""
    dataset = recipe.dataset
    part = images * (1 - dataset.holdout)
    part = round(min(part, dataset.train_images or part) * dataset.portion)
    return min(part, dataset.shots * classes or part)


def counts_of(recipe: Recipe, name: str) -> tuple[int, int]:
    """Images and classes of a set: of its pack, its folder, or as many as were published."""
    images, classes = _whole(recipe, name)
    return min(images, recipe.dataset.limit or images), classes


def _whole(recipe: Recipe, name: str) -> tuple[int, int]:
    dataset = recipe.dataset
    folder = packs.pack_folder(Path(recipe.runs), dataset, recipe.model, name)
    if (folder / MANIFEST).is_file():
        pack = Pack.open(folder)
        return len(pack), len(pack.classes)
    return kind_of(dataset).counts(name)
