"""The exact diagonal Fisher against an ordinary forward and backward pass of the same batch.

Its FLOPs are the ordinary ones; on the CPU the squares add passes over cached tiles. A loop over
single images and vmap(grad) write and read every example's own gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import vit
from bench.contest import Contest, Entrant, Scale
from bench.roofline import Work
from kernels import reference
from kernels.fisher import FisherAccumulator

KERNELS = ("fisher", "outer_squares")
_VMAP_CHUNK = 8


def gate(device: torch.device) -> None:
    """A toy ViT in fp32 against one backward pass an image, to 1e-5 of the largest element."""
    model = vit.build(device, Scale(quick=True))
    accumulator = FisherAccumulator(model.net)
    accumulator.update(model.images, model.labels)
    assert not accumulator.fallback, f"these went through vmap: {sorted(accumulator.fallback)}"
    truth = reference.fisher_diagonal(model.net, model.images, model.labels)
    for name, found in accumulator.mean().items():
        right = truth[name]
        error = (found - right).abs().max() / right.abs().max().clamp_min(1e-30)
        assert error < 1e-5, f"{name} is off by {error:.1e} of its largest element"


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    model = vit.build(device, scale)
    numel, batch = model.theta.numel(), model.batch
    accumulator = FisherAccumulator(model.net)
    parameters = dict(model.net.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def exact() -> None:
        with vit.autocast(device):
            accumulator.update(model.images, model.labels)

    def ordinary() -> None:
        model.grad.zero_()
        with vit.autocast(device):
            loss = F.cross_entropy(model.net(model.images), model.labels)
        loss.backward()

    def one_by_one() -> None:
        with vit.autocast(device):
            reference.fisher_diagonal(model.net, model.images, model.labels)

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        with vit.autocast(device):
            logits = torch.func.functional_call(model.net, values, (image[None],))
            return F.cross_entropy(logits, label[None])

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def by_vmap() -> None:
        values = {name: p.detach() for name, p in parameters.items()}
        chunks = (x.split(_VMAP_CHUNK) for x in (model.images, model.labels))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # attention has no CPU batching rule
            for some, theirs in zip(*chunks, strict=True):
                for name, gradient in per_example(values, some, theirs).items():
                    sums[name] += gradient.square().sum(0)

    flops = batch * model.flops
    # Each example's product is read, squared and added to a tile: registers on CUDA, else cache.
    squares = 0 if device.type == "cuda" else 12 * batch * numel
    name = f"Fisher {model.name}"
    subject = Entrant("exact Fisher", exact, Work(squares + 8 * numel, flops))
    plain = Work(12 * numel, flops)
    target = 1.3 if device.type == "cuda" else 1.5
    yield Contest(name, subject, (Entrant("forward + backward", ordinary, plain, target),))
    others = (
        Entrant("loop, one image each", one_by_one, Work(24 * batch * numel, flops)),
        Entrant("vmap(grad), chunks of 8", by_vmap, Work(20 * batch * numel, flops)),
    )
    yield Contest(name, subject, others, rounds=3)
