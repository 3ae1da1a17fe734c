"""How fast a model trains and is evaluated here: the engine's loop and pass, on random weights.

Times depend on neither weights nor labels, so nothing is downloaded. A plain loop, timm's model
with PyTorch's fused SGD on images that wait on the device, is timed beside them, under the same
autocast.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from engine import models
from engine.cells import cell_plan
from engine.cells.build import Builder
from engine.cells.cell_plan import CellPlan
from engine.data.sets import Sets
from engine.evaluation import passes
from engine.machine import precision
from engine.machine.files import cache_folder
from engine.machine.flops import of_image, peak
from engine.methods.base import Trained
from engine.recipe import catalogue, modules, overrides
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
    """Of one step of `batch` images; ms: milliseconds. mfu: operations of the model's passes over
    those that the device can do in that time. peak_mb: the most that tensors held, on a GPU."""

    what: str
    batch: int
    ms: float
    images_s: float
    mfu: float
    peak_mb: float | None


def cell_of(method: str, given: Sequence[Override]) -> CellPlan:
    """The cell that is timed of a method: a row of ImageNet-RIB's, or a user's YAML file."""
    if not catalogue.is_path(method):
        return cell_plan.resolve(f"imagenet_rib/{method}", given)
    alone = [*given, *overrides.of_mapping({"methods": [method]})]
    return cell_plan.resolve("imagenet_rib", alone, method=Path(method).stem)


@dataclass(frozen=True)
class Training:
    """A method on the engine; run: an epoch over `images`."""

    builder: Builder
    method: Trained
    images: int
    run: Callable[[], object]


@dataclass(frozen=True)
class _Noise:
    """Random pixels as a sample's bytes."""

    size: int
    format: Literal["raw"] = "raw"

    def __call__(self, item: Item) -> Stored:
        pixels = np.random.default_rng(item.payload).integers(0, 256, 3 * self.size**2, np.uint8)
        blob = pixels.tobytes()
        return Stored(blob, zlib.crc32(blob), (self.size, self.size), "")


def noise(folder: Path, size: int, images: int) -> Pack:
    """A raw pack of random pixels, `size` x `size`, in `CLASSES` classes by turns."""
    return encode(
        folder, name="noise", items=[Item(i % CLASSES, str(i), str(i), i) for i in range(images)],
        encoder=_Noise(size), transform_spec={}, classes=[f"class {i}" for i in range(CLASSES)],
        source_fingerprint="", progress=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What is timed, in a folder of its own. given: of the recipe. pack: in place of noise."""

    folder: Path
    model: str
    given: Sequence[Override]
    device: torch.device
    steps: int
    pack: Pack | None = None

    def measure(self, methods: Sequence[str], batches: Sequence[int]) -> Iterator[Speed]:
        """A row as soon as it is known. Raises RecipeError for settings that do not fit, ValueError
        for a method that does not train by steps and a pack of another size or of too few images.
        """
        for batch in batches:
            for method in methods:
                with self.training(method, batch) as epoch:
                    recipe = epoch.builder.recipe
                    yield self._timed(method, recipe, epoch.images, epoch.run, backward=True)
            builder = self._builder("fine_tune", batch)
            run = replace(builder.run, shares_features=False)

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
        if hasattr(cell.recipe.method, "fisher_images"):  # the Fisher itself is not timed
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
        """A method prepared, and its epoch; closes its engine in the end. Raises as `measure`."""
        builder = self._builder(method, batch)
        trained = modules.find(builder.recipe.method.module).Method(builder.recipe.method)
        if not isinstance(trained, Trained):
            raise ValueError(f"{method} mixes finished cells: it has no training of its own")
        loop.prepare(trained, builder.run, builder)
        images = batch * (len(builder.target.training(builder.recipe)) // batch)
        with loop.initialized(trained, builder.run) as engine:
            run = partial(loop.epochs, engine, trained, builder.run)
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
        """The median of some runs after one, which compiles and makes what a method needs."""
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
        # A batch norm needs two images in training.
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
