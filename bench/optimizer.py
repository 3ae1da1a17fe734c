"""The optimizer step alone: EWC folded in, against torch's fused steps without any penalty.

Flat fp32 tensors, as ZeRO hands them over. The penalty adds two reads, 8 bytes a parameter, to the
28 of AdamW and the 20 of SGD with momentum; the same penalty in the loss costs passes of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bench import peers, vit
from bench.contest import Contest, Entrant, Scale
from bench.roofline import Work
from kernels import reference
from kernels.ewc import adamw_ewc_, foreach_adamw_ewc_, sgd_ewc_

KERNELS = ("ewc",)
LAM, LR, DECAY = 0.5, 1e-3, 0.05
# The twin's numbers for AdamW's third step.
_SCALARS = [LAM, 1 - LR * DECAY, LR / (1 - 0.9**3), 0.1, 0.999, 0.001, (1 - 0.999**3) ** -0.5, 1e-8]
_SGD_SCALARS = [LAM, DECAY, 0.9, LR]
# Penalty in the loss, bytes a parameter: distance 12, square 8, times Fisher 12, sum 4; backward
# through the product 8 and the square 20, accumulation into the gradient 12, the Fisher's read 4.
_NAIVE = 80
# torch's foreach AdamW: decay 8, lerp 12, v 8 + 16, sqrt 8, divide 8, add 8, addcdiv 16.
_FOREACH = 84
# torch's foreach SGD: decay added 12, momentum 8 + 12, step 12.
_FOREACH_SGD = 44
OF_FUSED = 1.35


def gate(device: torch.device) -> None:
    """Both steps, on the path that is timed, against their twins in float64."""
    numel = 3 * (1 << 17) + 5  # some chunks and a part of one
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, numel, generator=generator)
    inputs[3:].square_()
    for name in ("adamw", "sgd"):
        rows = inputs if name == "adamw" else inputs[[0, 1, 2, 4, 5]]
        actual, truth = rows.to(device, copy=True), rows.double()
        theta, grad, *state, anchor, fisher = actual
        if name == "adamw":
            _ewc_adamw(theta, grad, state, anchor, fisher)
            reference.adamw_ewc_(*truth, scalars=_double(_SCALARS))
        else:
            _ewc_sgd(theta, grad, state[0], anchor, fisher)
            reference.sgd_ewc_(*truth, scalars=_double(_SGD_SCALARS))
        rows_but_grad = [
            0,
            *range(2, len(truth)),
        ]  # a step on a CPU writes over the gradient, row 1
        torch.testing.assert_close(
            actual[rows_but_grad].cpu().double(), truth[rows_but_grad], rtol=1e-6, atol=1e-6
        )
    whole = inputs.to(device, copy=True)
    columns = [list(row.split([7, numel - 7])) for row in whole]
    foreach_adamw_ewc_(*columns, steps=[3, 3], lr=LR, weight_decay=DECAY, lam=LAM)
    alone = inputs.to(device, copy=True)
    theta, grad, *state, anchor, fisher = alone
    _ewc_adamw(theta, grad, state, anchor, fisher)
    rows_but_grad = [0, *range(2, len(whole))]
    torch.testing.assert_close(whole[rows_but_grad], alone[rows_but_grad], rtol=1e-6, atol=1e-6)


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    for millions in (1,) if scale.quick else (21, 86):
        numel = millions * 1_000_000
        yield from _adamw(numel, f"EWC-AdamW {millions}M", device)
        yield from _sgd(numel, f"EWC-SGD {millions}M", device)
    yield _apart(vit.tensor_sizes(scale.quick), device)


def _adamw(numel: int, name: str, device: torch.device) -> Iterator[Contest]:
    theta, grad, anchor, fisher = _tensors(numel, device)
    state = [torch.zeros_like(theta) for _ in range(2)]
    options = {"lr": LR, "weight_decay": DECAY}

    def peer(label: str, kind: Callable[..., Optimizer], moved: int, **more: Any) -> Entrant:
        _, optimizer = _stepping(kind, theta, grad, **options, **more)
        optimizer.step()  # fails here where a package cannot compile it
        return Entrant(label, optimizer.step, Work(moved * numel))

    def ewc() -> None:
        _ewc_adamw(theta, grad, state, anchor, fisher)

    subject = Entrant("adamw_ewc_", ewc, Work(36 * numel))
    plain = peer("torch AdamW, fused", torch.optim.AdamW, 28, fused=True)
    target = OF_FUSED if device.type == "cuda" else None
    yield Contest(name, subject, (replace(plain, target=target),))
    entrants = [peer("torch AdamW, foreach", torch.optim.AdamW, _FOREACH, foreach=True)]
    if device.type == "cuda":
        for label, module in (("DeepSpeed", "deepspeed.ops.adam"), ("apex", "apex.optimizers")):
            if (kind := peers.optional(module, "FusedAdam")) is not None:
                build = partial(peer, f"{label} FusedAdam", kind, 28, adam_w_mode=True)
                entrants += peers.tried(f"{label} FusedAdam", build)
    fused = _stepping(torch.optim.AdamW, theta, grad, fused=True, **options)
    entrants += [
        _in_the_loss(*fused, anchor, fisher, 28),
        *_by_avalanche(*fused, anchor, fisher, 28),
    ]
    if numel > 1_000_000:  # quick sizes do not repay compiling
        tensors = [theta, grad, *state, anchor, fisher]
        entrants.append(_compiled(reference.adamw_ewc_, tensors, _SCALARS, subject.work))
    yield Contest(name, subject, tuple(entrants))


def _apart(sizes: list[int], device: torch.device) -> Contest:
    """A model's tensors one by one, as without ZeRO."""
    numel = sum(sizes)
    theta, grad = (list(torch.randn(numel, device=device).split(sizes)) for _ in range(2))
    anchor, fisher = (list(torch.rand(numel, device=device).split(sizes)) for _ in range(2))
    exp_avg, exp_avg_sq = (list(torch.zeros(numel, device=device).split(sizes)) for _ in range(2))
    parameters = [torch.nn.Parameter(part.clone()) for part in theta]
    for parameter, part in zip(parameters, grad, strict=True):
        parameter.grad = part.clone()
    fused = torch.optim.AdamW(parameters, lr=LR, weight_decay=DECAY, fused=True)

    def ewc() -> None:
        options = {"steps": [3] * len(sizes), "lr": LR, "weight_decay": DECAY, "lam": LAM}
        foreach_adamw_ewc_(theta, grad, exp_avg, exp_avg_sq, anchor, fisher, **options)

    return Contest(
        f"EWC-AdamW {len(sizes)} tensors",
        Entrant("foreach_adamw_ewc_", ewc, Work(36 * numel)),
        (Entrant("torch AdamW, fused", fused.step, Work(28 * numel)),),
    )


def _sgd(numel: int, name: str, device: torch.device) -> Iterator[Contest]:
    theta, grad, anchor, fisher = _tensors(numel, device)
    momentum_buffer = torch.zeros_like(theta)
    options = {"lr": LR, "momentum": 0.9, "weight_decay": DECAY}

    def peer(label: str, kind: Callable[..., Optimizer], moved: int, **more: Any) -> Entrant:
        _, optimizer = _stepping(kind, theta, grad, **options, **more)
        optimizer.step()  # fails here where a package cannot compile it
        return Entrant(label, optimizer.step, Work(moved * numel))

    def ewc() -> None:
        _ewc_sgd(theta, grad, momentum_buffer, anchor, fisher)

    subject = Entrant("sgd_ewc_", ewc, Work(28 * numel))
    yield Contest(name, subject, (peer("torch SGD, fused", torch.optim.SGD, 20, fused=True),))
    entrants = [peer("torch SGD, foreach", torch.optim.SGD, _FOREACH_SGD, foreach=True)]
    if (
        device.type == "cuda"
        and (kind := peers.optional("apex.optimizers", "FusedSGD")) is not None
    ):
        entrants += peers.tried("apex FusedSGD", partial(peer, "apex FusedSGD", kind, 20))
    fused = _stepping(torch.optim.SGD, theta, grad, fused=True, **options)
    entrants += [
        _in_the_loss(*fused, anchor, fisher, 20),
        *_by_avalanche(*fused, anchor, fisher, 20),
    ]
    if numel > 1_000_000:
        tensors = [theta, grad, momentum_buffer, anchor, fisher]
        entrants.append(_compiled(reference.sgd_ewc_, tensors, _SGD_SCALARS, subject.work))
    yield Contest(name, subject, tuple(entrants))


def _tensors(numel: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    theta, grad = (torch.randn(numel, device=device, generator=generator) for _ in range(2))
    anchor, fisher = (torch.zeros_like(theta).normal_(generator=generator) for _ in range(2))
    return [theta, grad, anchor, fisher.square_()]


def _ewc_adamw(
    theta: Tensor, grad: Tensor, state: list[Tensor], anchor: Tensor, fisher: Tensor
) -> None:
    m, v = state
    adamw_ewc_(theta, grad, m, v, anchor, fisher, step=3, lr=LR, weight_decay=DECAY, lam=LAM)


def _ewc_sgd(
    theta: Tensor, grad: Tensor, momentum_buffer: Tensor, anchor: Tensor, fisher: Tensor
) -> None:
    sgd_ewc_(theta, grad, momentum_buffer, anchor, fisher, lr=LR, weight_decay=DECAY, lam=LAM)


def _double(scalars: list[float]) -> Tensor:
    return torch.tensor(scalars, dtype=torch.float64)


def _stepping(
    kind: Callable[..., Optimizer], theta: Tensor, grad: Tensor, **options: Any
) -> tuple[Tensor, Optimizer]:
    """An optimizer over a copy of theta, with a gradient of its own."""
    parameter = torch.nn.Parameter(theta.clone())
    parameter.grad = grad.clone()
    return parameter, kind([parameter], **options)


def _in_the_loss(
    theta: Tensor, optimizer: Optimizer, anchor: Tensor, fisher: Tensor, plain: int
) -> Entrant:
    def step() -> None:
        (LAM / 2 * (fisher * (theta - anchor) ** 2).sum()).backward()
        optimizer.step()

    return Entrant("penalty in the loss", step, Work((plain + _NAIVE) * theta.numel()))


def _compiled(
    twin: Callable[..., Any], tensors: list[Tensor], scalars: list[float], work: Work | None
) -> Entrant:
    """The same step written in torch, as torch.compile fuses it."""
    step = torch.compile(twin, dynamic=True)
    numbers = torch.tensor(scalars, device=tensors[0].device)

    @torch.no_grad()
    def run() -> None:
        step(*tensors, scalars=numbers)

    return Entrant("the twin, torch.compile", run, work)


def _by_avalanche(
    theta: Tensor, optimizer: Optimizer, anchor: Tensor, fisher: Tensor, plain: int
) -> list[Entrant]:
    model = torch.nn.ParameterList([theta])
    penalty = peers.avalanche_penalty(model, anchor, fisher, LAM)
    if penalty is None:
        return []

    def step() -> None:
        penalty().backward()
        optimizer.step()

    return [Entrant("Avalanche EWCPlugin", step, Work((plain + _NAIVE) * theta.numel()))]
