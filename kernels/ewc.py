"""Optimizer steps with the EWC penalty folded in: the regulariser rides in a pass that runs anyway.

Added to the loss, the penalty lam / 2 * sum_i F_i (theta_i - theta*_i)^2 costs several passes over
the parameters, forward and backward. Its gradient is elementwise, so the optimizer's own pass can
form it from two more reads:

    g       = grad + lam * F * (theta - theta*)
    AdamW     m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
              theta = (1 - lr wd) theta - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
    SGD       m = momentum m + g + wd theta;  theta = theta - lr m

Bytes moved per fp32 parameter: AdamW 36 (28 without the penalty), SGD with momentum 28 (20). The
penalty's value is accumulated on the way, without a further pass. On the CPU the plain twin runs in
chunks whose temporaries stay in cache.

Sources: Kirkpatrick et al. 2017, equation 3; Loshchilov & Hutter 2019, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import reference, tables
from kernels.launch import jit, launcher, tl
from kernels.step_numbers import Steps, step_numbers
from kernels.tables import Columns, Row, Table, place, sum_in_order, tensor_at

# Elements: a chunk's temporaries stay in cache, and are too small to be mapped afresh each time.
_CHUNK = 1 << 16


def adamw_ewc_(
    theta: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    anchor: Tensor | None = None,
    fisher: Tensor | None = None,
    *,
    step: int | Tensor,
    **options: Any,
) -> None:
    """`foreach_adamw_ewc_` for one tensor."""
    tensors = [theta], [grad], [exp_avg], [exp_avg_sq], _listed(anchor), _listed(fisher)
    foreach_adamw_ewc_(*tensors, steps=[step], **options)


def foreach_adamw_ewc_(
    thetas: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    anchors: Sequence[Tensor] | None = None,
    fishers: Sequence[Tensor] | None = None,
    *,
    steps: Sequence[int | Tensor],
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    lam: float = 0.0,
    penalty: Tensor | None = None,
) -> None:
    """One AdamW step (decoupled weight decay) on the loss plus the EWC penalty, in place.

    thetas, grads, exp_avgs, exp_avg_sqs, anchors, fishers: for each parameter, contiguous fp32
    tensors of one shape, which do not overlap, all on one device; theta, exp_avg and exp_avg_sq are
    updated. anchors None: no penalty; fishers None: the identity. penalty: fp32 or fp64 scalar on
    the same device, to which the penalty's value before the step is added.

    steps count from 1, one for each parameter. lr and steps may be tensors without dimensions, on
    the parameters' device or the CPU, of any dtype. Those on a GPU are not read by the host: such a
    step can be captured in a CUDA graph, after one step with the same tensors and gradients.

    CUDA tensors go to a Triton kernel, one launch for all, the penalty's value included; others to
    the reference in cache-sized chunks. Inside torch.compile a step is one operator, compiled once
    for tensors, and once more where it shows that a number given as such changes.

    Raises ValueError, naming the tensor, for a shape, dtype, device or layout that does not fit.
    """
    states = {"exp_avg": exp_avgs, "exp_avg_sq": exp_avg_sqs}
    columns = {"theta": thetas, "grad": grads, **states, "anchor": anchors, "fisher": fishers}
    _step(columns, penalty, lr, steps, [*betas, eps, weight_decay, lam])


def sgd_ewc_(
    theta: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    anchor: Tensor | None = None,
    fisher: Tensor | None = None,
    *,
    first: bool = False,
    **options: Any,
) -> None:
    """`foreach_sgd_ewc_` for one tensor.

    first: momentum_buffer's content is ignored and becomes the gradient (its first step).
    """
    if first:
        momentum_buffer.zero_()
    foreach_sgd_ewc_(
        [theta], [grad], [momentum_buffer], _listed(anchor), _listed(fisher), **options
    )


def foreach_sgd_ewc_(
    thetas: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    anchors: Sequence[Tensor] | None = None,
    fishers: Sequence[Tensor] | None = None,
    *,
    lr: float | Tensor,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    lam: float = 0.0,
    penalty: Tensor | None = None,
) -> None:
    """One step of SGD with momentum on the loss plus the EWC penalty, in place.

    As `foreach_adamw_ewc_`, except that weight decay is part of the gradient, as in
    torch.optim.SGD. A momentum_buffer starts at zero.
    """
    states = {"momentum_buffer": momentum_buffers}
    columns = {"theta": thetas, "grad": grads, **states, "anchor": anchors, "fisher": fishers}
    _step(columns, penalty, lr, None, [momentum, weight_decay, lam])


def _listed(tensor: Tensor | None) -> list[Tensor] | None:
    return None if tensor is None else [tensor]


def _step(
    columns: Columns,
    penalty: Tensor | None,
    lr: float | Tensor,
    steps: Steps,
    options: Sequence[float],
) -> None:
    """columns: in the order of the twin's arguments. steps None: SGD's, with the options momentum,
    weight_decay and lam; else AdamW's, with both betas, eps, weight_decay and lam."""
    if not torch.compiler.is_compiling():
        _run(columns, penalty, lr, steps, options)
        return
    lists = [list(column or ()) for column in columns.values()]
    theta, grad, moment, *squares, anchor, fisher = lists
    counts = torch.stack([_traced(step) for step in steps]) if steps else None
    tensors = theta, grad, moment, squares[0] if squares else [], anchor, fisher
    with torch.no_grad():
        _operator(*tensors, penalty, _traced(lr), counts, options)


def _traced(number: float | Tensor) -> Tensor:
    """A product, since torch.compile takes `torch.tensor(number)` for a constant."""
    return number if isinstance(number, Tensor) else torch.ones((), dtype=torch.float64) * number


@torch.library.custom_op("rib::ewc_step_", mutates_args=("thetas", "moments", "squares", "penalty"))
def _operator(
    thetas: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    squares: Sequence[Tensor],
    anchors: Sequence[Tensor],
    fishers: Sequence[Tensor],
    penalty: Tensor | None,
    lr: Tensor,
    steps: Tensor | None,
    options: Sequence[float],
) -> None:
    """`_run` for a compiled graph; an operator's list cannot be None."""
    states = {"momentum_buffer": moments}
    if steps is not None:
        states = {"exp_avg": moments, "exp_avg_sq": squares}
    optional = {"anchor": anchors or None, "fisher": fishers or None}
    _run({"theta": thetas, "grad": grads, **states, **optional}, penalty, lr, steps, options)


@_operator.register_fake
def _(*_: Any) -> None:
    pass


@torch.no_grad()
def _run(
    columns: Columns,
    penalty: Tensor | None,
    lr: float | Tensor,
    steps: Steps,
    options: Sequence[float],
) -> None:
    rows, thetas = tables.rows(columns), columns["theta"]
    if columns["fisher"] is not None and columns["anchor"] is None:
        raise ValueError("fisher is given without an anchor to measure the distance from")
    assert thetas is not None
    if steps is not None and len(steps) != len(thetas):
        raise ValueError(f"step: {len(steps)} are given for {len(thetas)} parameters")
    if not rows:
        return
    _check(penalty, thetas[0].device)
    numbers = step_numbers(lr, steps, options, thetas[0].device)
    (_launch if thetas[0].is_cuda else _on_cpu)(rows, penalty, numbers)


def _on_cpu(rows: list[Row], penalty: Tensor | None, numbers: Tensor) -> None:
    twin: Any = reference.adamw_ewc_ if len(rows[0]) == 6 else reference.sgd_ewc_
    for row, scalars in zip(rows, numbers.expand(len(rows), -1), strict=True):
        for start in range(0, row[0].numel(), _CHUNK):
            parts = [t if t is None else t[start : start + _CHUNK] for t in row]
            value = twin(*parts, scalars, penalty is not None)
            if penalty is not None and value is not None:
                penalty.add_(value)


def _check(penalty: Tensor | None, device: torch.device) -> None:
    if penalty is None:
        return
    if penalty.ndim or penalty.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "penalty must be a float32 or float64 scalar, not "
            f"{penalty.dtype} {list(penalty.shape)}"
        )
    if penalty.device != device:
        raise ValueError(f"penalty is on {penalty.device}, but theta is on {device}")


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
    WITH_PENALTY: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Steps the elements `at` of a parameter; returns their share of the penalty's value."""
    theta = tensor_at(pointers, count, 0, number, ALIGNED) + at
    moment = tensor_at(pointers, count, 2, number, ALIGNED) + at
    x = tl.load(theta, mask=valid, other=0.0)
    g = tl.load(tensor_at(pointers, count, 1, number, ALIGNED) + at, mask=valid, other=0.0)
    m = tl.load(moment, mask=valid, other=0.0)
    share = 0.0
    if HAS_ANCHOR:
        anchor = tensor_at(pointers, count, 2 + STATES, number, ALIGNED) + at
        distance = x - tl.load(anchor, mask=valid, other=0.0)
        pull = tl.load(numbers) * distance
        if HAS_FISHER:
            fisher = tensor_at(pointers, count, 3 + STATES, number, ALIGNED) + at
            pull *= tl.load(fisher, mask=valid, other=0.0)
        g += pull
        if WITH_PENALTY:
            share = tl.sum(0.5 * pull * distance, 0)
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
    return share


@jit(do_not_specialize=("count", "blocks", "pitch"))
def _step_kernel(
    pointers,
    owners,
    firsts,
    sizes,
    arrived,
    count,
    blocks,
    numbers,
    pitch,
    penalty,
    partials,
    STATES: tl.constexpr,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number, start, left = place(owners, firsts, sizes, BLOCK)
    at, numbers = start + tl.arange(0, BLOCK), numbers + number * pitch
    if left >= BLOCK:  # without a mask that depends on a size, loads are wide
        valid = tl.full((BLOCK,), True, tl.int1)
        share = _update(
            pointers, count, number, numbers, at, valid,
            STATES, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY, ALIGNED,
        )  # fmt: skip
    else:
        share = _update(
            pointers, count, number, numbers, at, at < start + left,
            STATES, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY, ALIGNED,
        )  # fmt: skip
    if WITH_PENALTY:
        tl.store(partials + tl.program_id(0), share)
        if tl.atomic_add(arrived, 1) == blocks - 1:  # the program that comes last
            tl.store(penalty, tl.load(penalty) + sum_in_order(partials, 0, blocks, BLOCK))
            tl.store(arrived, 0)  # for the next launch


def _launch(rows: list[Row], penalty: Tensor | None, numbers: Tensor) -> None:
    """One launch for all rows, each the flat tensors of a parameter in the order of the twin."""
    table = Table.of(rows)
    *states, anchor, fisher = rows[0]
    with_penalty = penalty is not None and anchor is not None
    launcher(_step_kernel)[(table.blocks,)](
        *table.arguments,
        numbers,
        numbers.stride(0) if len(numbers) > 1 else 0,
        penalty if with_penalty else numbers,
        numbers.new_empty(table.blocks) if with_penalty else numbers,
        STATES=len(states) - 2,
        HAS_ANCHOR=anchor is not None,
        HAS_FISHER=fisher is not None,
        WITH_PENALTY=with_penalty,
        **table.options,
    )


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    flags = ("HAS_ANCHOR", "HAS_FISHER", "WITH_PENALTY")
    variants = {"plain": 0, "identity": 1, "ewc": 2, "ewc+value": 3}
    floats = dict.fromkeys(("numbers", "penalty", "partials"), "*fp32")
    return [
        {
            "name": f"{name} {variant}",
            "fn": _step_kernel,
            "signature": tables.SIGNATURE | floats | {"pitch": "i32"},
            "constexprs": tables.CONSTANTS
            | {"STATES": states}
            | {flag: number < given for number, flag in enumerate(flags)},
            "num_warps": tables.WARPS,
            "bytes_per_element": 4 * (2 + states + min(given, 2) + 1 + states),
            "streams": (2 + states + min(given, 2), 1 + states),
        }
        for name, states in (("adamw_ewc_", 2), ("sgd_ewc_", 1))
        for variant, given in variants.items()
    ]
