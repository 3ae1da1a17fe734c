"""Predicts the hours, memory and disk space of a campaign's work from machines' rates."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.cost import rates, work
from engine.cost.work import Network, Work
from engine.data import packs
from engine.recipe.schema import Recipe

ROW_BYTES = 42  # per stored prediction: measured on files of 200 rows; larger files need less
CALIBRATION_BYTES = 156  # extra with `evaluate.calibration`: measured on 8192 rows, 1000 classes
PROCESS_GB = 3.0  # Python, torch, numba and compiled code
COPIES = 4  # of a model in training: weights, gradient and two moments of the optimizer
STEP_BYTES = 28  # memory traffic of an optimizer's step per fp32 parameter
EXCHANGE_BYTES = 16  # of DeepSpeed's copies beside an all-reduce: flattened and copied back


@dataclass(frozen=True)
class Device:
    """The speed of a GPU, or of the CPU cores of a job.

    bf16, fp32: achieved TFLOP/s of matrix products. memory, link: bandwidths in GB/s. cores: 0 for
    a GPU.
    """

    name: str
    bf16: float
    fp32: float
    memory: float = math.inf
    link: float = math.inf
    cores: int = 0

    def hours(self, parts: Iterable[Work], gpus: int = 1) -> float:
        """Hours of parts that run one after the other, in a job on `gpus` GPUs.

        In evaluation, GPUs divide the batches. In training, they divide the images of each batch
        and exchange gradients in every step. On a GPU, the host takes part in every batch.
        """
        seconds = 0.0
        for part in parts:
            passes = part.operations / (1e12 * (self.fp32 if part.fp32 else self.bf16))
            passes += (1 + part.fp32) * part.traffic / (1e9 * self.memory)
            if part.trained:
                update = STEP_BYTES * part.trained / (1e9 * self.memory)
                update += EXCHANGE_BYTES * (gpus > 1) * part.trained / (1e9 * self.memory)
                update += 2 * (gpus - 1) / gpus * 4 * part.trained / (1e9 * self.link)
                host = 0 if self.cores else part.batches * rates.STEP_S
                seconds += max(passes / gpus + part.batches * update, host)
            else:
                host = 0 if self.cores else part.batches * rates.BATCH_S
                seconds += max(passes, host) / gpus
            seconds += part.core_s / self.cores if self.cores else part.gpu_s
        return seconds / 3600


def gpu(name: str) -> Device:
    """An NVIDIA GPU, by its name in `rates.CHIPS`."""
    return _of_chip(name, rates.CHIPS[name])


def users_gpu(tflops: float) -> Device:
    """A GPU with this data-sheet peak in bf16 TFLOP/s, otherwise a proportionally scaled H100."""
    like = rates.CHIPS["H100"]
    share = tflops / like.bf16
    scaled = {"bf16": tflops, "fp32": share * like.fp32, "memory": share * like.memory}
    return _of_chip("yours", dataclasses.replace(like, **scaled))


def _of_chip(name: str, chip: rates.Chip) -> Device:
    share = chip.reached()
    return Device(name, share * chip.bf16, share * chip.fp32, chip.memory, chip.link)


def cpu(cores: int, core_tflops: float = rates.CORE_TFLOPS) -> Device:
    """CPU cores. core_tflops: the TFLOP/s that a campaign achieves per core."""
    rate, name = cores * core_tflops, "1 CPU core" if cores == 1 else f"{cores} CPU cores"
    return Device(name, rate, rate, cores=cores)


def this_core(network: Network) -> Device:
    """A core of this machine, from its measured speed in matrix products."""
    return cpu(1, rates.CORE_SHARE * network.core_share * rates.product_tflops())


@dataclass(frozen=True)
class Estimate:
    """All work of a campaign, by job.

    recipe: the first cell's. rows: number of the table's rows. shared: work before the columns, on
    as many GPUs as a column. columns: of each, its trainings, then the evaluation of each model,
    without what a job pays to start (`work.in_a_job`). images: by dataset. largest: images of the
    largest dataset that is trained on or evaluated; others are streamed. disk: bytes by kind of
    artefact.
    """

    recipe: Recipe
    rows: int
    network: Network
    shared: list[Work]
    columns: list[list[Work]]
    distances: list[Work]
    images: dict[str, int]
    largest: int
    disk: dict[str, float]

    def column_hours(self, device: Device, gpus: int = 1) -> float:
        """Hours of the longest column in one job, with this number of GPUs."""
        return max(device.hours(work.in_a_job(column), gpus) for column in self.columns)

    def memory_gb(self, gpus: int = 1) -> float:
        """Host memory of a job in GB; for one GPU also the memory on the GPU."""
        recipe = self.recipe
        image = 3 * recipe.model.image_size**2
        # A batch's activations are a hundred times its images; a model is kept for each row.
        batch = max(recipe.train.batch_size, recipe.evaluate.batch_size) * image * 4 * 100
        copies = (COPIES + self.rows) * self.network.parameters * 4
        return gpus * PROCESS_GB + (copies + batch + self.largest * image) / 1e9

    def by_name(self) -> dict[str, list[Work]]:
        """The parts grouped by name, in order."""
        groups: dict[str, list[Work]] = {}
        columns = map(work.in_a_job, self.columns)
        for part in itertools.chain(self.shared, *columns, self.distances):
            groups.setdefault(part.name, []).append(part)
        return groups


def campaign_cost(columns: Sequence[Sequence[Sequence[Recipe]]], rows: int) -> Estimate:
    """Estimates the cost of a campaign.

    columns: of each, the recipes of each cell and of the cells that it needs. rows: the number of
    the table's rows. Users' methods count as plain fine-tuning; datasets that are not encoded with
    their published size. Raises ValueError if a dataset is neither encoded nor known, or its folder
    cannot be read.
    """
    recipe = columns[0][0][0]
    dataset, trained = recipe.dataset, [column[0][0].trained_sets for column in columns]
    needed = dict.fromkeys([*recipe.base_sets, *itertools.chain(*trained)])
    sizes = {name: work.size_of(recipe, name) for name in needed}
    images = {name: of.images for name, of in sizes.items()}
    net = work.network(recipe, sizes[dataset.head_classes].classes)
    counted = [work.column(column, sizes, net) for column in columns]
    everywhere = sum(images[name] for name in recipe.base_sets)  # images with stored features
    predictions = sum(images[name] for name in dataset.evaluated_sets)
    predictions += sum(stored for _, _, stored in counted)
    cropped = {
        name: cell
        for cell in itertools.chain(*itertools.chain(*columns))
        for name in cell.trained_sets
        if cell.train.crops
    }
    stored = [(recipe, count) for count in images.values()]
    stored += [(packs.to_train_on(cell), images[name]) for name, cell in cropped.items()]
    row_bytes = ROW_BYTES + CALIBRATION_BYTES * recipe.evaluate.calibration
    return Estimate(
        recipe,
        rows,
        net,
        shared=[
            work.START,
            work.graphs(counted[-1][0]),
            net.evaluated("pretrained model", everywhere, recipe),
            *work.fishers(columns, images, net),
        ],
        columns=[parts for parts, _, _ in counted],
        distances=[work.START, work.distances(recipe, sizes)],
        images=images,
        largest=max(
            sum(images[name] for name in names)
            for names in (*([name] for name in dataset.evaluated_sets), *trained)
        ),
        disk={
            "packs": float(sum(packs.size_bytes(*pack) for pack in stored)),
            "weights": 4.0 * net.parameters * (1 + sum(files for _, files, _ in counted)),
            "features": 4.0 * net.width * everywhere,
            "predictions": float(row_bytes * predictions),
        },
    )
