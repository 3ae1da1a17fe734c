"""The exact diagonal Fisher against an ordinary forward and backward pass of the same batch.

Its FLOPs are the ordinary ones; on the CPU the squares add passes over cached tiles. A loop over
single images, which Avalanche's importances with batches of one are too, and vmap(grad) write and
read every example's own gradient; their time is proportional to the images, so on the CPU they get
eight of them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers, vit
from bench.contest import Contest, Entrant, Scale
from bench.roofline import Work
from kernels import reference
from kernels.fisher import FisherAccumulator

KERNELS = ("fisher.diagonal", "fisher.outer_squares")
_VMAP_CHUNK = 8
_SLOW_BATCH = 8


def gate(device: torch.device) -> None:
    """A toy ViT against one backward pass an image in fp32, relative to the largest element.

    To 1e-5 in fp32, and to bf16's precision as it is timed on CUDA.
    """
    model = vit.build(device, Scale(quick=True))
    with torch.backends.cudnn.flags(allow_tf32=False):  # or the truth's convolution is off by 4e-4
        truth = reference.fisher_diagonal(model.net, model.images, model.labels)
    ways: list[tuple[contextlib.AbstractContextManager, float]] = [(contextlib.nullcontext(), 1e-5)]
    if device.type == "cuda":
        ways.append((vit.autocast(device), 5e-2))
    for way, tolerance in ways:
        accumulator = FisherAccumulator(model.net)
        with way, torch.backends.cudnn.flags(allow_tf32=False):
            accumulator.update(model.images, model.labels)
        assert not accumulator.fallback, f"these went through vmap: {sorted(accumulator.fallback)}"
        for name, diagonal in accumulator.mean().items():
            expected = truth[name]
            error = (diagonal - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
            assert error < tolerance, f"{name} is off by {error:.1e} of its largest element"


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    model = vit.build(device, scale)
    yield Contest(f"Fisher {model.name}", _exact(model), (_ordinary(model),), rounds=3)
    if device.type == "cpu":
        model = model.at_most(_SLOW_BATCH)
    entrants = [_loop(model), _by_vmap(model)]
    if not scale.quick:  # quick sizes do not repay compiling
        entrants += peers.tried("vmap(grad), compiled", lambda: _by_vmap(model, compiled=True))
    entrants += _avalanche(model, entrants[0].work)
    yield Contest(f"Fisher {model.name}", _exact(model), tuple(entrants), rounds=3)


def _exact(model: vit.FlatViT) -> Entrant:
    accumulator = FisherAccumulator(model.net)
    device, numel = model.images.device, model.theta.numel()

    def run() -> None:
        with vit.autocast(device):
            accumulator.update(model.images, model.labels)

    # Each example's product is read, squared and added to a tile: registers on CUDA, else cache.
    squares = 0 if device.type == "cuda" else 12 * model.batch * numel
    return Entrant("exact Fisher", run, Work(squares + 8 * numel, model.batch * model.flops))


def _ordinary(model: vit.FlatViT) -> Entrant:
    device = model.images.device

    def run() -> None:
        model.grad.zero_()
        with vit.autocast(device):
            loss = F.cross_entropy(model.net(model.images), model.labels)
        loss.backward()

    work = Work(12 * model.theta.numel(), model.batch * model.flops)
    return Entrant("forward + backward", run, work, 1.3 if device.type == "cuda" else 1.5)


def _loop(model: vit.FlatViT) -> Entrant:
    def run() -> None:
        with vit.autocast(model.images.device):
            reference.fisher_diagonal(model.net, model.images, model.labels)

    work = Work(24 * model.batch * model.theta.numel(), model.batch * model.flops)
    return Entrant("loop, one image each", run, work)


def _avalanche(model: vit.FlatViT, work: Work | None) -> list[Entrant]:
    importances = peers.avalanche_fisher(model.net, model.images, model.labels)
    if importances is None:
        return []

    def run() -> None:
        with vit.autocast(model.images.device):
            importances()

    return [Entrant("Avalanche, batches of 1", run, work)]


def _by_vmap(model: vit.FlatViT, compiled: bool = False) -> Entrant:
    parameters = {name: p.detach() for name, p in model.net.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        with vit.autocast(model.images.device):
            logits = torch.func.functional_call(model.net, values, (image[None],))
            return F.cross_entropy(logits, label[None])

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def squares(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        gradients = per_example(parameters, images, labels)
        return {name: gradient.square().sum(0) for name, gradient in gradients.items()}

    label = f"vmap(grad), chunks of {_VMAP_CHUNK}"
    if compiled:
        label, squares = "vmap(grad), compiled", torch.compile(squares)

    def run() -> None:
        chunks = (x.split(_VMAP_CHUNK) for x in (model.images, model.labels))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # attention has no CPU batching rule
            for part, part_labels in zip(*chunks, strict=True):
                for name, total in squares(part, part_labels).items():
                    sums[name] += total

    if compiled:
        run()  # fails here where it cannot be compiled
    work = Work(20 * model.batch * model.theta.numel(), model.batch * model.flops)
    return Entrant(label, run, work)
