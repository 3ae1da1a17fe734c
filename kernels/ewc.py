"""Optimizer steps that include the EWC penalty, at the cost of two more reads.

Added to the loss, the penalty lam / 2 * sum_i F_i (theta_i - theta*_i)^2 costs several passes over
the parameters, forward and backward. Its gradient is elementwise, so the optimizer's own pass can
compute it:

    g       = grad + lam * F * (theta - theta*)
    AdamW     m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
              theta = (1 - lr wd) theta - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
    SGD       m = momentum m + g + wd theta;  theta = theta - lr m

Bytes moved per fp32 parameter: AdamW 36 (28 without the penalty), SGD with momentum 28 (20). On the
CPU, the penalty's gradient is added to each gradient, and torch's fused optimizer makes the step.

Sources: Kirkpatrick et al. 2017, equation 3; Loshchilov & Hutter 2019, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from kernels import tables
from kernels.launch import jit, launcher, tl
from kernels.tables import Row, Table, place, tensor_at, to_device

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}  # torch's names


class EwcParameters:
    """All tensors of a step except the gradients, checked once for all later steps.

    thetas, anchors, fishers, and those of `moments` by name: one tensor per parameter, contiguous
    fp32, shaped like theta, without overlaps, all on one device. moments: AdamW's exp_avg and
    exp_avg_sq, or SGD's momentum_buffer, zero before the first step. anchors: None for no penalty.
    fishers: None for the identity.

    Checking and flattening six tensors for each of 150 parameters takes the host longer than the
    step takes the GPU. Raises ValueError, naming the tensor, for an invalid shape, dtype, device or
    layout, for moments of neither, and for fishers without anchors.
    """

    @torch.no_grad()
    def __init__(
        self,
        thetas: Sequence[Tensor],
        moments: Mapping[str, Sequence[Tensor]],
        anchors: Sequence[Tensor] | None = None,
        fishers: Sequence[Tensor] | None = None,
    ) -> None:
        if fishers is not None and anchors is None:
            raise ValueError("fisher is given without anchor: the penalty needs both")
        kinds = [kind for kind, names in MOMENTS.items() if {*names} == {*moments}]
        if not kinds:
            raise ValueError(f"moments are {', '.join(moments)}, but must be one of {MOMENTS}")
        self._kind, *_ = kinds
        in_order = {name: moments[name] for name in MOMENTS[self._kind]}
        columns = {"theta": thetas, **in_order, "anchor": anchors, "fisher": fishers}
        self._thetas = list(thetas)
        self._rows = tables.rows(columns)

    def adamw_(
        self,
        grads: Sequence[Tensor],
        *,
        steps: Sequence[int],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lam: float = 0.0,
    ) -> None:
        """One AdamW step (decoupled weight decay) on the loss plus the EWC penalty, in place.

        grads: as thetas; the step may overwrite them. steps: one per parameter, counted from 1.
        CUDA tensors use a Triton kernel, with one launch for all and without synchronising the
        host. Raises ValueError, naming the tensor, for gradients that do not fit, and for a step
        below 1.
        """
        if any(step < 1 for step in steps):
            raise ValueError(f"step must be at least 1, not {min(steps)}")
        rows = self._with("adamw", grads, lam)
        if len(steps) != len(rows):
            raise ValueError(f"step: got {len(steps)} values for {len(rows)} parameters")
        if not rows:
            return
        beta1, beta2 = betas
        if self._thetas[0].is_cuda:
            unlike = steps[:1] if len(set(steps)) == 1 else steps
            decay = 1 - lr * weight_decay
            numbers = [
                [
                    lam,
                    decay,
                    lr / (1 - beta1**t),
                    1 - beta1,
                    beta2,
                    1 - beta2,
                    (1 - beta2**t) ** -0.5,
                    eps,
                ]
                for t in unlike
            ]
            _launch(rows, numbers)
            return
        theta, grad, exp_avg, exp_avg_sq, *_ = (list(column) for column in zip(*rows, strict=True))
        before = [torch.tensor(float(step - 1)) for step in steps]  # torch adds 1
        options: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        flags: dict[str, Any] = {"fused": True, "amsgrad": False, "maximize": False}
        adamw(
            *(theta, grad, exp_avg, exp_avg_sq, [], before),
            beta1=beta1,
            beta2=beta2,
            **options,
            **flags,
        )

    def sgd_(
        self,
        grads: Sequence[Tensor],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        lam: float = 0.0,
    ) -> None:
        """One step of SGD with momentum on the loss plus the EWC penalty, in place.

        As `adamw_`, but weight decay is part of the gradient, as in torch.optim.SGD.
        """
        rows = self._with("sgd", grads, lam)
        if not rows:
            return
        if self._thetas[0].is_cuda:
            _launch(rows, [[lam, weight_decay, momentum, lr]])
            return
        theta, grad, buffer, *_ = (list(column) for column in zip(*rows, strict=True))
        options: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        flags: dict[str, Any] = {"fused": True, "nesterov": False, "maximize": False}
        sgd(theta, grad, buffer, dampening=0.0, **options, **flags)

    @torch.no_grad()
    def _with(self, kind: str, grads: Sequence[Tensor], lam: float) -> list[Row]:
        """Each parameter's flat tensors; on the CPU, gradients include the penalty's."""
        if kind != self._kind:
            raise ValueError(f"a step of {kind} needs other moments than those of {self._kind}")
        tables.check("grad", grads, self._thetas)
        rows = [
            [theta, grad.view(-1), *others]
            for grad, (theta, *others) in zip(grads, self._rows, strict=True)
        ]
        if rows and rows[0][-2] is not None and not self._thetas[0].is_cuda:
            for theta, grad, *_, anchor, fisher in rows:
                if fisher is None:
                    grad.add_(theta - anchor, alpha=lam)
                else:
                    grad.addcmul_(fisher, theta - anchor, value=lam)
        return rows


@jit
def _update(
    pointers,
    count,
    number,
    numbers,
    at,
    valid,
    STATES: tl.constexpr,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Updates the elements `at` of a parameter."""
    theta = tensor_at(pointers, count, 0, number, ALIGNED) + at
    moment = tensor_at(pointers, count, 2, number, ALIGNED) + at
    x = tl.load(theta, mask=valid, other=0.0)
    g = tl.load(tensor_at(pointers, count, 1, number, ALIGNED) + at, mask=valid, other=0.0)
    m = tl.load(moment, mask=valid, other=0.0)
    if HAS_ANCHOR:
        anchor = tensor_at(pointers, count, 2 + STATES, number, ALIGNED) + at
        distance = x - tl.load(anchor, mask=valid, other=0.0)
        pull = tl.load(numbers) * distance
        if HAS_FISHER:
            fisher = tensor_at(pointers, count, 3 + STATES, number, ALIGNED) + at
            pull *= tl.load(fisher, mask=valid, other=0.0)
        g += pull
    if STATES == 2:  # AdamW
        square = tensor_at(pointers, count, 3, number, ALIGNED) + at
        v = tl.load(square, mask=valid, other=0.0)
        m += tl.load(numbers + 3) * (g - m)
        v = tl.load(numbers + 4) * v + tl.load(numbers + 5) * g * g
        scale = tl.sqrt(v) * tl.load(numbers + 6) + tl.load(numbers + 7)
        x = tl.load(numbers + 1) * x - tl.load(numbers + 2) * m / scale
        tl.store(square, v, mask=valid)
    else:
        m = tl.load(numbers + 2) * m + (g + tl.load(numbers + 1) * x)
        x -= tl.load(numbers + 3) * m
    tl.store(theta, x, mask=valid)
    tl.store(moment, m, mask=valid)


@jit(do_not_specialize=("count", "pitch"))
def _step_kernel(
    pointers,
    owners,
    firsts,
    sizes,
    count,
    numbers,
    pitch,
    STATES: tl.constexpr,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number, start, left = place(owners, firsts, sizes, BLOCK)
    at, numbers = start + tl.arange(0, BLOCK), numbers + number * pitch
    if left >= BLOCK:  # loads are wide only if the mask does not depend on a size
        valid = tl.full((BLOCK,), True, tl.int1)
        _update(
            pointers, count, number, numbers, at, valid,
            STATES, HAS_ANCHOR, HAS_FISHER, ALIGNED,
        )  # fmt: skip
    else:
        _update(
            pointers, count, number, numbers, at, at < start + left,
            STATES, HAS_ANCHOR, HAS_FISHER, ALIGNED,
        )  # fmt: skip


@torch.no_grad()
def _launch(rows: list[Row], numbers: Sequence[Sequence[float]]) -> None:
    """Launches one kernel for all rows.

    rows: each parameter's flat tensors, in the order of the columns. numbers: the scalars that
    `_update` reads, one row per parameter or one for all.
    """
    table = Table.of(rows)
    *states, anchor, fisher = rows[0]
    on_device = to_device(torch.tensor(numbers, dtype=torch.float32), rows[0][0].device)
    launcher(_step_kernel)[(table.blocks,)](
        *table.arguments,
        on_device,
        len(numbers[0]) if len(numbers) > 1 else 0,
        STATES=len(states) - 2,
        HAS_ANCHOR=anchor is not None,
        HAS_FISHER=fisher is not None,
        **table.options,
    )
