"""The kernels at the sizes of a campaign, against the same in PyTorch.

    step      EWC inside the optimizer's step; fused steps of torch, alone and with the penalty in
              the loss; on a GPU, apex's alone. Bytes a parameter: AdamW 28 and SGD 20, with EWC's
              two tensors 36 and 28
    distill   cross-entropy and distillation, forward and backward; torch's own losses composed
    merge     11 interpolated models for one read of their parents; torch.lerp for each
    launches  on a GPU, of a step of one number, which cost the host's time; torch's additions
    Fisher    the exact diagonal; an ordinary pass of the same batch

On a CPU the steps and the losses are torch's operators, and what is timed is how they are put
together. GB/s are those bytes over the time; `a copy` shows what the memory can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import vit
from bench.contest import Contest, Entrant, Run, Scale, repeated, tried
from kernels.distill import distill_loss
from kernels.ewc import MOMENTS, EwcParameters
from kernels.fisher import FisherAccumulator
from kernels.interpolation import interpolate

LR, DECAY, LAM, T = 1e-3, 0.05, 0.5, 2.0
ALPHAS = 11
TIMES = 20  # a loss takes less time than its launches
# Torch's step, apex's, their options, and the bytes that torch moves for a parameter.
STEPS: dict[str, tuple[Any, str, dict[str, Any], int]] = {
    "AdamW": (torch.optim.AdamW, "FusedAdam", {}, 28),
    "SGD": (torch.optim.SGD, "FusedSGD", {"momentum": 0.9}, 20),
}


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    parameters = 10**6 if scale.quick else 86 * 10**6
    for name in STEPS:
        yield _step(name, parameters, device)
    for batch, classes in ((8, 100),) if scale.quick else ((256, 1000), (64, 21843)):
        yield _distill(batch, classes, device, compiles=not scale.quick)
    yield _merge(parameters // 4, device)
    gpu = device.type == "cuda"
    if gpu:
        yield _launches(device)
    # Fisher in fp32, as the engine computes it; on a GPU also in bf16.
    model = vit.build(device, scale.quick, "ViT-B" if gpu else "ViT-S", images=64 if gpu else 8)
    for bf16 in (False, True) if gpu else (False,):
        yield _fisher(model, device, bf16=bf16)


def _step(name: str, parameters: int, device: torch.device) -> Contest:
    kind, of_apex, options, bytes_each = STEPS[name]
    options = {"lr": LR, "weight_decay": DECAY, **options}

    def tensors(count: int) -> list[Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        drawn = [torch.randn(count, device=device, generator=generator) for _ in range(4)]
        return [*drawn[:3], drawn[3].square_()]

    def with_ewc(theta: Tensor, grad: Tensor, anchor: Tensor, fisher: Tensor) -> Run:
        moments = {state: [torch.zeros_like(theta)] for state in MOMENTS[name.lower()]}
        parameters = EwcParameters([theta], moments, [anchor], [fisher])
        if name == "AdamW":
            return lambda: parameters.adamw_([grad], steps=[1], lam=LAM, **options)
        return lambda: parameters.sgd_([grad], lam=LAM, **options)

    def torchs(theta: Tensor, grad: Tensor, *penalty: Tensor) -> Run:
        parameter = nn.Parameter(theta)  # the same memory
        parameter.grad = grad
        optimizer = kind([parameter], fused=True, **options)

        def step() -> None:
            if penalty:
                anchor, fisher = penalty
                (LAM / 2 * (fisher * (parameter - anchor) ** 2).sum()).backward()
            optimizer.step()

        return step

    def apex(theta: Tensor, grad: Tensor) -> Entrant:
        from apex import optimizers  # pyright: ignore[reportMissingImports]

        parameter = nn.Parameter(theta)
        parameter.grad = grad
        step = getattr(optimizers, of_apex)([parameter], **options).step
        return Entrant(f"apex's {of_apex}", step, bytes=bytes_each * parameters)

    def check() -> None:
        expected, actual = tensors(100_003), tensors(100_003)
        torchs(*expected)()
        with_ewc(*actual)()
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)

    shared = tensors(parameters)
    apexs = tried("apex", partial(apex, *shared[:2])) if device.type == "cuda" else []
    return Contest(
        f"step, {name}, {parameters / 1e6:.0f}M",
        Entrant("with EWC", with_ewc(*shared), bytes=(bytes_each + 8) * parameters),
        (
            Entrant("torch's fused step", torchs(*shared[:2]), bytes=bytes_each * parameters),
            Entrant("it and EWC in the loss", torchs(*shared)),
            *apexs,
            _copy(4 * parameters, device),
        ),
        check,
        processor_time=True,
    )


def _distill(batch: int, classes: int, device: torch.device, *, compiles: bool) -> Contest:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, batch, classes, generator=generator)
    student, teacher = logits.to(device, dtype)
    labels = torch.randint(classes, (batch,), generator=generator).to(device)
    student.requires_grad_()

    def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return distill_loss(student, teacher, labels, temperature=T).mean()

    def composed(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_p, log_q = (student / T).log_softmax(1), (teacher / T).log_softmax(1)
        kl = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        return F.cross_entropy(student, labels) + T**2 * kl

    def run(loss: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(loss(student, teacher, labels), student)[0]

    def check() -> None:
        exact = student.detach().double().requires_grad_()
        (truth,) = torch.autograd.grad(composed(exact, teacher.double(), labels), exact)
        tolerance = 1e-2 if device.type == "cuda" else 1e-5
        torch.testing.assert_close(run(ours)().double(), truth, rtol=tolerance, atol=1e-6)

    losses = {"CE + KL": composed}
    if compiles:  # for each size: a graph of any size would be slower
        losses["CE + KL, torch.compile"] = torch.compile(composed, dynamic=False)
    # Both are read, a gradient is written, read and scaled.
    moved = TIMES * 5 * student.nbytes
    return Contest(
        f"{TIMES} x distill, {batch} x {classes}",
        Entrant("distill_loss", repeated(run(ours), TIMES, device), bytes=moved),
        tuple(Entrant(n, repeated(run(loss), TIMES, device)) for n, loss in losses.items()),
        check,
        processor_time=True,
    )


def _merge(parameters: int, device: torch.device) -> Contest:
    parents = torch.randn(2, parameters, device=device)
    alphas = torch.linspace(0, 1, ALPHAS)
    weights = torch.stack([1 - alphas, alphas], dim=1).to(device)

    def ours() -> Tensor:
        return interpolate(parents, weights)

    def lerp() -> list[Tensor]:
        return [torch.lerp(parents[0], parents[1], alpha) for alpha in alphas.tolist()]

    def check() -> None:
        torch.testing.assert_close(ours(), torch.stack(lerp()), rtol=1e-5, atol=1e-5)

    moved = (2 + ALPHAS) * parents[0].nbytes
    name = f"merge, {ALPHAS} x {parameters / 1e6:.1f}M"
    peers = Entrant("torch.lerp for each", lerp), _copy(moved // 2, device)
    return Contest(
        name, Entrant("interpolate", ours, bytes=moved), peers, check, processor_time=True
    )


def _copy(nbytes: int, device: torch.device) -> Entrant:
    """Reads so many bytes and writes as many."""
    a, b = torch.ones(2, nbytes, dtype=torch.uint8, device=device)
    return Entrant("a copy", lambda: b.copy_(a), bytes=2 * nbytes)


def _fisher(model: vit.FlatViT, device: torch.device, *, bf16: bool) -> Contest:
    accumulator = FisherAccumulator(model.net, bf16=bf16)

    def ordinary(images: Tensor, labels: Tensor) -> None:
        model.grad.zero_()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model.net(images), labels)
        loss.backward()

    def check() -> None:
        ours, squares = FisherAccumulator(model.net, bf16=bf16), torch.zeros_like(model.grad)
        few = model.at_most(4)
        ours.update(few.images, few.labels)
        for pair in zip(few.images.split(1), few.labels.split(1), strict=True):
            ordinary(*pair)
            squares += model.grad.square()
        actual = torch.cat([total.flatten() for total in ours.sums.values()])
        assert (actual - squares).abs().max() <= (5e-2 if bf16 else 1e-4) * squares.max()

    name = f"Fisher, {model.kind} x {model.batch}{', bf16' * bf16}"
    exact = Entrant(
        "exact Fisher", lambda: accumulator.update(model.images, model.labels), model.batch
    )
    plain = Entrant("forward + backward", lambda: ordinary(model.images, model.labels), model.batch)
    return Contest(name, exact, (plain,), check, rounds=3, processor_time=True)


def _launches(device: torch.device) -> Contest:
    theta, grad, moment = torch.zeros(3, 1, device=device)
    parameters = EwcParameters([theta], {"momentum_buffer": [moment]})

    def ours() -> None:
        for _ in range(1000):
            parameters.sgd_([grad], lr=0.1)

    def additions() -> None:
        for _ in range(1000):
            theta.add_(1)

    peers = (Entrant("of an operator", additions),)
    return Contest("1000 launches", Entrant("of a kernel", ours), peers)
