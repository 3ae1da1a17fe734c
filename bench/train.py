"""Training end to end: photos in, trained weights out, by the engine and by loops that users have.

FT, EWC and LwF train an epoch as `engine.training.loop` does for a recipe of ImageNet-RIB: a
resident pack, DeepSpeed, the look at loss and weights at the epoch's end. The peers fine-tune the
same model from the same weights on the same photos:

    plain loop, in memory   PyTorch's fused SGD on normalised images that wait on the device, so
                            that what is left of the difference is the engine's machinery
    plain loop, files       the same with torchvision's ImageFolder and a DataLoader
    timm's loop             timm's loader, optimizer, task and meter, in the order of its script

On the CPU an epoch has 12 steps, of ViT-B 8. No loop writes a file.

On CUDA all run under bf16 autocast, and ours is compiled; timm's loop runs as it is and compiled.
Utilisation counts the FLOPs of a forward and a backward pass, whatever else a method does. Peak
memory is what tensors held at most, from building the model to the end of an epoch, without the
loaders' processes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.task import ClassificationTask
from timm.utils.metrics import AverageMeter
from torch import Tensor, nn

from bench import loader, photos
from bench.contest import Contest, Entrant, Load, Scale
from bench.terms import TERMS, Loss, fine_tune
from bench.timing import Run, peak_bytes
from bench.vit import autocast
from engine import models
from engine.data.sets import Sets
from engine.grid import cell_plan
from engine.grid.build import Builder
from engine.machine import quiet, ranks
from engine.machine.files import cache_folder
from engine.machine.flops import flops
from engine.methods.base import Trained
from engine.recipe import modules
from engine.recipe.schema import ModelRecipe
from engine.training import loop, optim, schedule

KERNELS = ()
LR, MOMENTUM = 1e-3, 0.9
METHODS = {"FT": "fine_tune", "EWC": "ewc", "LwF": "lwf"}
# The gate takes few steps: in the warm-up they would hardly move a weight, and what LwF adds is a
# hundredth of the cross-entropy's pull. EWC's is as strong as that from the second step on.
GATED = {"fine_tune": (), "ewc": (), "lwf": ("method.weight=100",)}
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def gate(device: torch.device) -> None:
    """Every method of the engine ends in the weights of the plain loop, with the method's own term
    in its loss, on the same batches."""
    with opened(device, "test_vit", 32, images=22, batch=4, drawn=True) as bench:
        for recipe, settings in GATED.items():
            _check(bench, bench.builder(recipe, "train.warmup_steps=0", *settings))


def _check(bench: Bench, builder: Builder) -> None:
    x, y = bench.in_memory
    positions = builder.target.split("train")
    shares = list(schedule.schedule(positions, builder.run, epoch=0, rank=0, world=1))
    batches = [(x[share.index], y[share.index]) for share in shares]
    rate = partial(optim.learning_rate, total=len(shares), warmup=0, base=LR)
    net, start = bench.net(), bench.net().state_dict()
    loss = TERMS[builder.recipe.method.name](builder)
    bench.plain_loop(net, lambda: batches, rate, loss)()
    with bench.engine(builder) as (method, epoch):
        epoch()
        trained = method.export().state
    moved = max((w - start[name]).abs().max() for name, w in net.state_dict().items())
    tolerance = (1e-3 if bench.device.type == "cpu" else 0.1) * moved.item()
    for name, expected in net.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=0, atol=tolerance)


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    gpu = device.type == "cuda"
    size = 224 if gpu else 64  # at 224 px a CPU would take hours
    sizes = [("ViT-S", "vit_small_patch16_224", 8, 12), ("ViT-B", "vit_base_patch16_224", 4, 8)]
    if scale.quick:
        size, sizes = 32, [("toy ViT", "test_vit", 4, 2)]
    for title, arch, few, steps in sizes:
        batch, steps = (scale.batch or 64, 16) if gpu else (scale.batch or few, steps)
        with (
            opened(device, arch, size, steps * batch, batch, drawn=scale.draws) as bench,
            contextlib.ExitStack() as engines,
        ):
            peers = bench.peers(gpu)
            for method, recipe in METHODS.items():
                name = f"{method} {title} {size} px x {batch}"
                rivals = peers if method == "FT" else peers[::2]  # in memory, and timm's
                yield bench.contest(name, method, recipe, rivals, engines)


@dataclass
class Bench:
    """Photos as files and as a pack, a model's first weights, and everything that trains it."""

    files: loader.Bench
    weights: Path
    images: int

    def contest(
        self,
        name: str,
        title: str,
        recipe: str,
        peers: tuple[Entrant, ...],
        engines: contextlib.ExitStack,
    ) -> Contest:
        """A method against the peers; its engine lives as long as `engines`."""
        builder = self.builder(recipe)
        with self.engine(builder):
            pass  # teacher logits and Fisher are in the store from now on
        run, load = self._measured(lambda: engines.enter_context(self.engine(builder))[1])
        return Contest(name, Entrant(title, run, load=load), peers, rounds=3)

    def peers(self, gpu: bool) -> tuple[Entrant, ...]:
        files = self.files.torchvision()
        timms = self.files.timm()

        def on_device() -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in files:
                yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

        loops: dict[str, Callable[[], Run]] = {
            "plain loop, in memory": lambda: self.plain_loop(self.net(), self._slices),
            "plain loop, files": lambda: self.plain_loop(self.net(), on_device),
            "timm's loop": lambda: self.timm_loop(self.net(), lambda: timms),
        }
        if gpu:
            loops["timm's loop, compiled"] = lambda: self.timm_loop(
                self.net(), lambda: timms, compiled=True
            )
        entrants = []
        for name, build in loops.items():
            run, load = self._measured(build)
            entrants.append(Entrant(name, run, load=load))
        return tuple(entrants)

    @property
    def device(self) -> torch.device:
        return self.files.device

    def builder(self, recipe: str, *settings: str, campaign: str = "imagenet_rib") -> Builder:
        """The builder of a cell whose downstream and upstream set are the photos."""
        model = self.files.model
        words = [
            "model=file",
            f"model.arch={model.arch}",
            f"model.image_size={model.image_size}",
            f"model.weights.path={self.weights}",
            f"runs={self.weights.parent / 'runs'}",
            "source=resident",
            "train.epochs=1",
            "train.warmup_steps=0",
            f"train.batch_size={self.files.batch}",
            f"optimizer.lr={LR}",
            f"optimizer.momentum={MOMENTUM}",
        ]
        if recipe == "ewc":
            words.append(f"method.fisher_images={self.files.batch}")
        words += settings
        cell = cell_plan.resolve(f"{campaign}/{recipe}", words)
        resolved, pack = cell.recipe, self.files.raw
        packs = {resolved.downstream: pack, resolved.dataset.upstream: pack}
        sets = Sets(resolved, self.device, cache_folder(), packs, pack.classes)
        return Builder(cell, self.device, sets)

    @contextlib.contextmanager
    def engine(self, builder: Builder) -> Iterator[tuple[Trained, Run]]:
        """The recipe's method, prepared, and its epoch."""
        method = modules.find(builder.recipe.method.module).Method(builder.recipe.method)
        loop.prepare(method, builder.run, builder)
        engine = loop.initialize(method, builder.run)
        try:
            yield method, self._waited(lambda: loop.epochs(engine, method, builder.run))
        finally:
            loop.close(engine)

    def plain_loop(
        self,
        net: nn.Module,
        batches: Batches,
        rate: Callable[[int], float] = lambda step: LR,
        loss_of: Loss = fine_tune,
    ) -> Run:
        """An epoch as a tutorial writes it."""
        optimizer = torch.optim.SGD(net.parameters(), LR, MOMENTUM, fused=True)

        def epoch() -> None:
            net.train()
            for step, (x, y) in enumerate(batches()):
                optimizer.param_groups[0]["lr"] = rate(step)
                optimizer.zero_grad()
                with autocast(self.device):
                    loss = loss_of(net, x, y)
                loss.backward()
                optimizer.step()

        return self._waited(epoch)

    def timm_loop(self, net: nn.Module, batches: Batches, compiled: bool = False) -> Run:
        """An epoch of timm's training script, without its log."""
        task = ClassificationTask(net, nn.CrossEntropyLoss(), device=self.device, verbose=False)
        optimizer = create_optimizer_v2(net, opt="momentum", lr=LR, momentum=MOMENTUM)
        if compiled:
            task.compile()

        def epoch() -> None:
            losses = AverageMeter()
            task.train()
            for x, y in batches():
                with autocast(self.device):
                    loss = task(x, y)["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.update(loss.item(), len(x))

        return self._waited(epoch)

    def net(self) -> nn.Module:
        """The model with its first weights, on the device."""
        builder = self.builder("fine_tune")
        return builder.network(builder.base)

    @cached_property
    def in_memory(self) -> tuple[Tensor, Tensor]:
        """All normalised images and their labels, on the device."""
        builder = self.builder("fine_tune")
        target = builder.target
        (batch,) = builder.sets.source(target.name).batches([self.files.in_order])
        labels = target.labels[self.files.in_order].to(self.device)
        return self.files.normalize(batch.images), labels

    def _slices(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.in_memory
        return zip(x.split(self.files.batch), y.split(self.files.batch), strict=True)

    def _waited(self, epoch: Callable[[], object]) -> Run:
        """An epoch until the device is done."""

        def run() -> None:
            epoch()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return run

    def _measured(self, build: Callable[[], Run]) -> tuple[Run, Load]:
        run, peak = peak_bytes(build, self.device)
        return run, Load(self.images, self.images * self._flops, peak)

    @cached_property
    def _flops(self) -> float:
        """Of a forward and a backward pass of one image."""
        net, (x, _) = self.net().cpu(), self.in_memory
        return flops(lambda: net(x[:1].cpu()).sum().backward())


@contextlib.contextmanager
def opened(
    device: torch.device, arch: str, size: int, images: int, batch: int, *, drawn: bool
) -> Iterator[Bench]:
    """A benchmark in a temporary folder, with random weights: times do not depend on them."""
    workers = 1 if size == 32 else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name, _process_group(device):
        folder = Path(name)
        photos.write(folder / "files", images, drawn)
        model = ModelRecipe(name=arch, arch=arch, image_size=size)
        torch.manual_seed(0)
        weights = folder / "weights.safetensors"
        save_file(models.create(model, photos.CLASSES).state_dict(), weights)
        yield Bench(loader.Bench(folder, model, device, workers, batch), weights, images)


@contextlib.contextmanager
def _process_group(device: torch.device) -> Iterator[None]:
    """This process as the only rank, which it stays; its environment is put back."""
    environment = dict(os.environ)
    os.environ["RIB_PROGRESS"] = "off"
    quiet.libraries()
    ranks.start(device.type)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
