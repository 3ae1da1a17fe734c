"""Time training and evaluation of a model on this machine, with the engine's own loops.

Times do not depend on weights or labels, so the model has random weights and nothing is downloaded.
The baseline is a plain loop under the same autocast: timm's model with PyTorch's fused SGD, on
images that are already on the device.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from engine import models
from engine.cells.build import Builder
from engine.cells.cell_plan import CellPlan
from engine.cells.plan_cell import plan_cell
from engine.cost.flops import of_image, peak
from engine.data.sets import Sets
from engine.evaluation import passes
from engine.machine import precision
from engine.machine.files import cache_folder
from engine.methods.base import Trained
from engine.recipe import catalogue, overrides
from engine.recipe.methods import METHODS
from engine.recipe.overrides import Override
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.training import loop
from loaders.encode import encode
from loaders.pack import Item, Pack
from loaders.writer import Stored

CLASSES, RUNS, LR = 100, 3, 1e-4


@dataclass(frozen=True)
class Speed:
    """The speed of one step.

    what: the method, or the evaluation. batch: images per step. ms: milliseconds per step.
    images_s: images/s. mfu: model FLOPs utilisation, the model's operations divided by the
    device's peak. peak_mb: peak memory of tensors in MB, or None on a CPU.
    """

    what: str
    batch: int
    ms: float
    images_s: float
    mfu: float
    peak_mb: float | None


def cell_of(method: str, given: Sequence[Override]) -> CellPlan:
    """The cell to time for a method: a row of ImageNet-RIB, or a user's YAML file."""
    if not catalogue.is_path(method):
        return plan_cell(f"imagenet_rib/{method}", given)
    alone = [*given, *overrides.of_mapping({"methods": [method]})]
    return plan_cell("imagenet_rib", alone, method=Path(method).stem)


@dataclass(frozen=True)
class Training:
    """A method that is ready to train. run: trains an epoch of `images` images."""

    builder: Builder
    method: Trained
    images: int
    run: Callable[[], object]


@dataclass(frozen=True)
class _Noise:
    """Encodes a sample as random pixels."""

    size: int
    format: Literal["raw"] = "raw"

    def __call__(self, item: Item) -> Stored:
        pixels = np.random.default_rng(item.payload).integers(0, 256, 3 * self.size**2, np.uint8)
        blob = pixels.tobytes()
        return Stored(blob, zlib.crc32(blob), (self.size, self.size), "")


def noise(folder: Path, size: int, images: int) -> Pack:
    """A raw pack of random `size` x `size` pixels, with classes 0, ..., CLASSES - 1 in turn."""
    return encode(
        folder, name="noise", items=[Item(i % CLASSES, str(i), str(i), i) for i in range(images)],
        encoder=_Noise(size), transform_spec={}, classes=[f"class {i}" for i in range(CLASSES)],
        source_fingerprint="", progress=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A benchmark of one model.

    folder: for its files. given: the recipe's overrides. steps: steps per epoch. pack: images to
    use instead of noise.
    """

    folder: Path
    model: str
    given: Sequence[Override]
    device: torch.device
    steps: int
    pack: Pack | None = None

    def measure(self, methods: Sequence[str], batches: Sequence[int]) -> Iterator[Speed]:
        """Yield each result as soon as it is measured.

        Raises RecipeError for invalid settings, and ValueError for a method without training steps,
        or a pack with another image size or fewer images than a batch.
        """
        for batch in batches:
            for method in methods:
                with self.training(method, batch) as epoch:
                    recipe = epoch.builder.recipe
                    yield self._timed(method, recipe, epoch.images, epoch.run, backward=True)
            run = self._builder("fine_tune", batch)
            run.shares_features = False

            def evaluate(run: Run = run) -> None:
                run.store.files.remove("predictions")
                passes.evaluate(run, [{run.base.name: 1.0}], [run.recipe.downstream], "all")

            yield self._timed("evaluation", run.recipe, len(run.target.labels), evaluate)
            yield from self._plain(run.recipe)

    def _builder(self, method: str, batch: int) -> Builder:
        weights = self.folder / "weights.safetensors"
        ours = {
            "model.weights.source": "file",
            "model.weights.path": weights,
            "model.weights.match": "names",
            "model.weights.sha256": "",
            "model.head.fit": False,
            "runs": self.folder / "runs",
            "train.epochs": 1,
            "train.warmup_steps": 0,
            "train.batch_size": batch,
            "evaluate.batch_size": batch,
        }
        given = [*overrides.of_mapping({"model": self.model}), *self.given]
        given += overrides.of_mapping(ours)
        cell = cell_of(method, given)
        if hasattr(cell.recipe.method, "fisher_images"):  # computing the Fisher is not timed
            cell = cell.on(cell.recipe.downstream, {"method.fisher_images": batch})
        recipe = cell.recipe
        size, images = recipe.model.image_size, self.steps * batch
        pack = self.pack or noise(self.folder / f"noise-{images}", size, images)
        if pack.shape != (size, size):
            raise ValueError(f"{pack.folder} has images of {pack.shape}; the model needs {size}")
        if len(pack) < batch:
            raise ValueError(
                f"{pack.folder} has {len(pack)} images: too few for a batch of {batch}"
            )
        torch.manual_seed(0)
        save_file(models.create(recipe.model, len(pack.classes)).state_dict(), weights)
        packs = {recipe.downstream: pack, recipe.dataset.upstream: pack}
        sets = Sets(recipe, self.device, cache_folder(), packs, pack.classes)
        return Builder(cell, self.device, sets)

    @contextmanager
    def training(self, method: str, batch: int) -> Iterator[Training]:
        """Prepare a method's training, and close its engine at the end."""
        builder = self._builder(method, batch)
        trained = METHODS.find(builder.recipe.method.module).Method(builder.recipe.method)
        if not isinstance(trained, Trained):
            raise ValueError(f"{method} combines finished cells and does not train: omit it")
        loop.prepare(trained, builder)
        images = batch * (len(builder.target.training(builder.recipe)) // batch)
        with loop.initialized(trained, builder) as engine:
            run = partial(loop.epochs, engine, trained, builder)
            yield Training(builder, trained, images, run)

    def _plain(self, recipe: Recipe) -> Iterator[Speed]:
        batch, size = recipe.train.batch_size, recipe.model.image_size
        net = models.create(recipe.model, CLASSES).to(self.device)
        x = torch.randn(batch, 3, size, size, device=self.device)
        y = torch.arange(batch, device=self.device) % CLASSES
        optimizer = torch.optim.SGD(net.parameters(), LR, 0.9, fused=True)

        def training() -> None:
            net.train()
            for _ in range(self.steps):
                optimizer.zero_grad()
                with precision.autocast(recipe.train.precision, self.device):
                    loss = F.cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()

        @torch.inference_mode()
        def evaluation() -> None:
            net.eval()
            for _ in range(self.steps):
                with precision.autocast(recipe.evaluate.precision, self.device):
                    net(x).argmax(1)

        images = self.steps * batch
        yield self._timed("plain training", recipe, images, training, backward=True)
        yield self._timed("plain evaluation", recipe, images, evaluation)

    def _timed(
        self,
        what: str,
        recipe: Recipe,
        images: int,
        run: Callable[[], object],
        *,
        backward: bool = False,
    ) -> Speed:
        """The median of `RUNS` runs after a first one, which compiles and makes artefacts."""
        on_gpu, times = self.device.type == "cuda", []
        for number in range(1 + RUNS):
            if on_gpu and number == 1:
                torch.cuda.reset_peak_memory_stats(self.device)
            begin = time.perf_counter()
            run()
            if on_gpu:
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - begin)
        rate, batch = images / statistics.median(times[1:]), recipe.train.batch_size
        # Eval mode: in training mode, batch norm needs more than one image.
        net = models.create(recipe.model, CLASSES).to("meta").eval()
        operations = of_image(net, recipe.model.image_size, backward=backward)
        of_passes = recipe.train if backward else recipe.evaluate
        kind = precision.of_products(precision.resolve(of_passes.precision, self.device))
        return Speed(
            what=what,
            batch=batch,
            ms=1e3 * batch / rate,
            images_s=rate,
            mfu=rate * operations / peak(self.device, kind),
            peak_mb=torch.cuda.max_memory_allocated(self.device) / 1e6 if on_gpu else None,
        )
