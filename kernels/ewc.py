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

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, tl

_BLOCK = 1024
_WARPS = 4
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
    step: int,
    **options: Any,
) -> None:
    """`foreach_adamw_ewc_` for one tensor."""
    tensors = [theta], [grad], [exp_avg], [exp_avg_sq], _listed(anchor), _listed(fisher)
    foreach_adamw_ewc_(*tensors, steps=[step], **options)


@torch.no_grad()
def foreach_adamw_ewc_(
    thetas: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    anchors: Sequence[Tensor] | None = None,
    fishers: Sequence[Tensor] | None = None,
    *,
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    lam: float = 0.0,
    penalty: Tensor | None = None,
) -> None:
    """One AdamW step (decoupled weight decay) on the loss plus the EWC penalty, in place.

    thetas, grads, exp_avgs, exp_avg_sqs, anchors, fishers: for each parameter, contiguous fp32
    tensors of one shape on one device, which do not overlap; theta, exp_avg and exp_avg_sq are
    updated. anchors None: no penalty; fishers None: the identity. steps count from 1. penalty: fp32
    or fp64 scalar on the same device, to which the penalty's value before the step is added.

    CUDA tensors go to a Triton kernel, one launch for all of a device that have the same step, the
    penalty's value included; others to the reference in cache-sized chunks, or whole inside
    torch.compile.

    On CUDA, torch.compile compiles a step anew for every step and lr, which it takes for constants.

    Raises ValueError, naming the tensor, for a shape, dtype, device or layout that does not fit.
    """
    state = {"grad": grads, "exp_avg": exp_avgs, "exp_avg_sq": exp_avg_sqs}
    beta1, beta2 = betas
    scalars = []
    for step in steps:
        if step < 1:
            raise ValueError(f"step counts from 1, not {step}")
        step_size, v_scale = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
        decay = 1 - lr * weight_decay
        scalars.append([lam, decay, step_size, 1 - beta1, beta2, 1 - beta2, v_scale, eps])
    rows = _rows(thetas, state, anchors, fishers, penalty, scalars)
    _step(_adamw, _adamw_table_kernel, reference.adamw_ewc_, rows, penalty)


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


@torch.no_grad()
def foreach_sgd_ewc_(
    thetas: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    anchors: Sequence[Tensor] | None = None,
    fishers: Sequence[Tensor] | None = None,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    lam: float = 0.0,
    penalty: Tensor | None = None,
) -> None:
    """One step of SGD with momentum on the loss plus the EWC penalty, in place.

    As `foreach_adamw_ewc_`, except that weight decay is part of the gradient, as in
    torch.optim.SGD. A momentum_buffer starts at zero.
    """
    state = {"grad": grads, "momentum_buffer": momentum_buffers}
    scalars = [[lam, weight_decay, momentum, lr]] * len(thetas)
    rows = _rows(thetas, state, anchors, fishers, penalty, scalars)
    _step(_sgd, _sgd_table_kernel, reference.sgd_ewc_, rows, penalty)


def _listed(tensor: Tensor | None) -> list[Tensor] | None:
    return None if tensor is None else [tensor]


def _rows(
    thetas: Sequence[Tensor],
    state: dict[str, Sequence[Tensor]],
    anchors: Sequence[Tensor] | None,
    fishers: Sequence[Tensor] | None,
    penalty: Tensor | None,
    scalars: list[list[float]],
) -> list[tuple[list[Tensor | None], list[float]]]:
    """For each parameter its flat tensors, checked, in the order of the twin, and its scalars."""
    none = [None] * len(thetas)
    optional = {
        "anchor": none if anchors is None else anchors,
        "fisher": none if fishers is None else fishers,
    }
    for name, given in {**state, **optional, "step": scalars}.items():
        if len(given) != len(thetas):
            raise ValueError(f"{name}: {len(given)} are given for {len(thetas)} parameters")
    rows = []
    for theta, numbers, *tensors in zip(
        thetas, scalars, *state.values(), *optional.values(), strict=True
    ):
        _check(theta, dict(zip([*state, *optional], tensors, strict=True)), penalty)
        rows.append(([t if t is None else t.view(-1) for t in (theta, *tensors)], numbers))
    return rows


def _check(theta: Tensor, tensors: dict[str, Tensor | None], penalty: Tensor | None) -> None:
    if tensors["fisher"] is not None and tensors["anchor"] is None:
        raise ValueError("fisher is given without an anchor to measure the distance from")
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in {"theta": theta, **present}.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, not {tensor.dtype}")
        if tensor.shape != theta.shape or tensor.device != theta.device:
            raise ValueError(
                f"{name} is {list(tensor.shape)} on {tensor.device}, but theta is "
                f"{list(theta.shape)} on {theta.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: an in-place step cannot copy it")
    if penalty is not None:
        if penalty.ndim or penalty.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "penalty must be a float32 or float64 scalar, not "
                f"{penalty.dtype} {list(penalty.shape)}"
            )
        if penalty.device != theta.device:
            raise ValueError(f"penalty is on {penalty.device}, but theta is on {theta.device}")


def _step(
    op: Callable[..., None],
    table: Any,
    twin: Callable[..., Tensor | None],
    rows: list[tuple[list[Tensor | None], list[float]]],
    penalty: Tensor | None,
) -> None:
    """A row for each parameter, by a kernel or by its twin.

    Several rows on a GPU are one launch, but in a graph that torch.compile traces, which cannot
    know addresses.
    """
    if len(rows) > 1 and not torch.compiler.is_compiling():
        rows = _by_table(table, rows, penalty)
    for flat, scalars in rows:
        theta = flat[0]
        assert theta is not None
        if theta.is_cuda:
            op(*flat, penalty, scalars)
            continue
        # A tensor: numbers that change with every step must not be compiled as constants.
        numbers = torch.tensor(scalars, dtype=theta.dtype, device=theta.device)
        chunk = max(theta.numel(), 1) if torch.compiler.is_compiling() else _CHUNK
        for start in range(0, theta.numel(), chunk):
            part = [t if t is None else t[start : start + chunk] for t in flat]
            value = twin(*part, numbers, penalty is not None)
            if penalty is not None and value is not None:
                penalty.add_(value)


def _by_table(
    kernel: Any, rows: list[tuple[list[Tensor | None], list[float]]], penalty: Tensor | None
) -> list[tuple[list[Tensor | None], list[float]]]:
    """Steps the rows on GPUs, a launch for all on a device with the same scalars; those left."""
    alike: dict[tuple[Any, ...], list[list[Tensor | None]]] = {}
    left = []
    for flat, scalars in rows:
        theta = flat[0]
        assert theta is not None
        if theta.is_cuda:
            alike.setdefault((theta.device, *scalars), []).append(flat)
        else:
            left.append((flat, scalars))
    for (_, *scalars), tensors in alike.items():
        _launch_table(kernel, tensors, penalty, scalars)
    return left


@jit
def _penalised(
    theta,
    grad,
    anchor,
    fisher,
    at,
    valid,
    lam,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
):
    """theta, the gradient with the penalty's, and the block's share of the penalty."""
    x = tl.load(theta + at, mask=valid, other=0.0)
    g = tl.load(grad + at, mask=valid, other=0.0)
    share = 0.0
    if HAS_ANCHOR:
        distance = x - tl.load(anchor + at, mask=valid, other=0.0)
        pull = lam * distance
        if HAS_FISHER:
            pull *= tl.load(fisher + at, mask=valid, other=0.0)
        g += pull
        if WITH_PENALTY:
            share = tl.sum(0.5 * pull * distance, 0)
    return x, g, share


@jit
def _adamw_update(
    theta,
    grad,
    exp_avg,
    exp_avg_sq,
    anchor,
    fisher,
    at,
    valid,
    lam,
    decay,
    step_size,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    v_scale,
    eps,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
):
    x, g, share = _penalised(
        theta, grad, anchor, fisher, at, valid, lam, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY
    )
    m = tl.load(exp_avg + at, mask=valid, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=valid, other=0.0)
    m += one_minus_beta1 * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    x = decay * x - step_size * m / (tl.sqrt(v) * v_scale + eps)
    tl.store(theta + at, x, mask=valid)
    tl.store(exp_avg + at, m, mask=valid)
    tl.store(exp_avg_sq + at, v, mask=valid)
    return share


@jit
def _sgd_update(
    theta,
    grad,
    momentum_buffer,
    anchor,
    fisher,
    at,
    valid,
    lam,
    weight_decay,
    momentum,
    lr,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
):
    x, g, share = _penalised(
        theta, grad, anchor, fisher, at, valid, lam, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY
    )
    m = momentum * tl.load(momentum_buffer + at, mask=valid, other=0.0) + (g + weight_decay * x)
    tl.store(theta + at, x - lr * m, mask=valid)
    tl.store(momentum_buffer + at, m, mask=valid)
    return share


@jit
def _adamw_kernel(
    theta,
    grad,
    exp_avg,
    exp_avg_sq,
    anchor,
    fisher,
    partials,
    n,
    lam,
    decay,
    step_size,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    v_scale,
    eps,
    BLOCK: tl.constexpr,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    share = _adamw_update(
        theta, grad, exp_avg, exp_avg_sq, anchor, fisher, at, at < n, lam, decay, step_size,
        one_minus_beta1, beta2, one_minus_beta2, v_scale, eps, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY,
    )  # fmt: skip
    if WITH_PENALTY:
        tl.store(partials + tl.program_id(0), share)


@jit
def _sgd_kernel(
    theta,
    grad,
    momentum_buffer,
    anchor,
    fisher,
    partials,
    n,
    lam,
    weight_decay,
    momentum,
    lr,
    BLOCK: tl.constexpr,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    share = _sgd_update(
        theta, grad, momentum_buffer, anchor, fisher, at, at < n, lam, weight_decay, momentum, lr,
        HAS_ANCHOR, HAS_FISHER, WITH_PENALTY,
    )  # fmt: skip
    if WITH_PENALTY:
        tl.store(partials + tl.program_id(0), share)


@jit
def _tensor(pointers, count, role: tl.constexpr, number, ALIGNED: tl.constexpr):
    """The fp32 tensor that a table has for a role, of parameter `number`."""
    start = tl.load(pointers + role * count + number).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start


@jit
def _place(owners, firsts, sizes, BLOCK: tl.constexpr):
    """The number of the program's parameter, its first element there, and how many follow."""
    number = tl.load(owners + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(firsts + number)).to(tl.int64) * BLOCK
    return number, start, tl.load(sizes + number) - start


@jit
def _add_penalty(penalty, partials, arrived, share, blocks, BLOCK: tl.constexpr):
    """The program that comes last adds all shares, in one order, so that the sum is repeatable."""
    tl.store(partials + tl.program_id(0), share)
    if tl.atomic_add(arrived, 1) == blocks - 1:
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, blocks, BLOCK):
            at = start + tl.arange(0, BLOCK)
            shares = tl.load(partials + at, mask=at < blocks, other=0.0, cache_modifier=".cg")
            total += shares.to(tl.float64)
        tl.store(penalty, tl.load(penalty) + tl.sum(total, 0))
        tl.store(arrived, 0)  # for the next launch


@jit(do_not_specialize=("count", "blocks"))
def _adamw_table_kernel(
    pointers,
    owners,
    firsts,
    sizes,
    penalty,
    partials,
    arrived,
    count,
    blocks,
    lam,
    decay,
    step_size,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    v_scale,
    eps,
    BLOCK: tl.constexpr,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    number, start, left = _place(owners, firsts, sizes, BLOCK)
    theta = _tensor(pointers, count, 0, number, ALIGNED)
    grad = _tensor(pointers, count, 1, number, ALIGNED)
    exp_avg = _tensor(pointers, count, 2, number, ALIGNED)
    exp_avg_sq = _tensor(pointers, count, 3, number, ALIGNED)
    anchor = _tensor(pointers, count, 4, number, ALIGNED)
    fisher = _tensor(pointers, count, 5, number, ALIGNED)
    at, every = start + tl.arange(0, BLOCK), tl.full((BLOCK,), True, tl.int1)
    if left >= BLOCK:  # without a mask that depends on a size, loads are wide
        share = _adamw_update(
            theta, grad, exp_avg, exp_avg_sq, anchor, fisher, at, every, lam, decay,
            step_size, one_minus_beta1, beta2, one_minus_beta2, v_scale, eps, HAS_ANCHOR,
            HAS_FISHER, WITH_PENALTY,
        )  # fmt: skip
    else:
        share = _adamw_update(
            theta, grad, exp_avg, exp_avg_sq, anchor, fisher, at, at < start + left, lam, decay,
            step_size, one_minus_beta1, beta2, one_minus_beta2, v_scale, eps, HAS_ANCHOR,
            HAS_FISHER, WITH_PENALTY,
        )  # fmt: skip
    if WITH_PENALTY:
        _add_penalty(penalty, partials, arrived, share, blocks, BLOCK)


@jit(do_not_specialize=("count", "blocks"))
def _sgd_table_kernel(
    pointers,
    owners,
    firsts,
    sizes,
    penalty,
    partials,
    arrived,
    count,
    blocks,
    lam,
    weight_decay,
    momentum,
    lr,
    BLOCK: tl.constexpr,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    number, start, left = _place(owners, firsts, sizes, BLOCK)
    theta = _tensor(pointers, count, 0, number, ALIGNED)
    grad = _tensor(pointers, count, 1, number, ALIGNED)
    momentum_buffer = _tensor(pointers, count, 2, number, ALIGNED)
    anchor = _tensor(pointers, count, 3, number, ALIGNED)
    fisher = _tensor(pointers, count, 4, number, ALIGNED)
    at, every = start + tl.arange(0, BLOCK), tl.full((BLOCK,), True, tl.int1)
    if left >= BLOCK:  # without a mask that depends on a size, loads are wide
        share = _sgd_update(
            theta, grad, momentum_buffer, anchor, fisher, at, every, lam, weight_decay,
            momentum, lr, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY,
        )  # fmt: skip
    else:
        share = _sgd_update(
            theta, grad, momentum_buffer, anchor, fisher, at, at < start + left, lam, weight_decay,
            momentum, lr, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY,
        )  # fmt: skip
    if WITH_PENALTY:
        _add_penalty(penalty, partials, arrived, share, blocks, BLOCK)


@dataclass(frozen=True)
class _Layout:
    """Which program steps what, for parameters of these sizes on one device.

    owners int32 [programs]: a program's parameter; firsts int32 [T]: a parameter's first program;
    sizes int64 [T]; arrived int32 []: how many programs of a launch are done, 0 between launches.
    """

    owners: Tensor
    firsts: Tensor
    sizes: Tensor
    arrived: Tensor


@functools.lru_cache(maxsize=16)
def _layout(sizes: tuple[int, ...], device: torch.device) -> _Layout:
    blocks = -(-np.array(sizes) // _BLOCK)
    owners = np.repeat(np.arange(len(sizes)), blocks).astype(np.int32)
    firsts = (np.cumsum(blocks) - blocks).astype(np.int32)
    arrived = np.zeros((), np.int32)
    arrays = owners, firsts, np.array(sizes), arrived
    return _Layout(*(torch.from_numpy(array).to(device) for array in arrays))


@functools.lru_cache(maxsize=16)
def _pointers(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    """Addresses on the device, which does not make the host wait. Gradients are mostly where those
    of the step before were, so that nothing is copied."""
    table = torch.tensor(addresses, dtype=torch.int64)
    table = table.pin_memory() if device.type == "cuda" else table
    return table.to(device, non_blocking=True)


def _launch_table(
    kernel: Any,
    rows: Sequence[Sequence[Tensor | None]],
    penalty: Tensor | None,
    scalars: list[float],
) -> None:
    """One launch for all rows, each the flat tensors of a parameter in the order of the twin."""
    first = rows[0]
    theta, (anchor, fisher) = first[0], first[-2:]
    assert theta is not None
    layout = _layout(tuple(row[0].numel() for row in rows if row[0] is not None), theta.device)
    blocks = len(layout.owners)
    if not blocks:
        return
    roles = zip(*rows, strict=True)
    addresses = tuple(0 if t is None else t.data_ptr() for role in roles for t in role)
    with_penalty = penalty is not None and anchor is not None
    launcher(kernel)[(blocks,)](
        _pointers(addresses, theta.device),
        layout.owners,
        layout.firsts,
        layout.sizes,
        penalty if with_penalty else theta,
        theta.new_empty(blocks) if with_penalty else theta,
        layout.arrived,
        len(rows),
        blocks,
        *scalars,
        BLOCK=_BLOCK,
        HAS_ANCHOR=anchor is not None,
        HAS_FISHER=fisher is not None,
        WITH_PENALTY=with_penalty,
        ALIGNED=all(address % 16 == 0 for address in addresses),
        num_warps=_WARPS,
    )


def _launch(
    kernel: Any,
    written_and_read: list[Tensor],
    anchor: Tensor | None,
    fisher: Tensor | None,
    penalty: Tensor | None,
    scalars: list[float],
) -> None:
    theta = written_and_read[0]
    blocks = -(-theta.numel() // _BLOCK)
    if not blocks:
        return
    # Partial sums and one reduction: unlike atomics they give the same value every time.
    with_penalty = penalty is not None and anchor is not None
    partials = theta.new_empty(blocks) if with_penalty else theta
    launcher(kernel)[(blocks,)](
        *written_and_read,
        theta if anchor is None else anchor,
        theta if fisher is None else fisher,
        partials,
        theta.numel(),
        *scalars,
        BLOCK=_BLOCK,
        HAS_ANCHOR=anchor is not None,
        HAS_FISHER=fisher is not None,
        WITH_PENALTY=with_penalty,
        num_warps=_WARPS,
    )
    if penalty is not None and partials is not theta:
        penalty.add_(partials.sum(dtype=torch.float64))


@triton_op("rib::adamw_ewc_", mutates_args=("theta", "exp_avg", "exp_avg_sq", "penalty"))
def _adamw(
    theta: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    anchor: Tensor | None,
    fisher: Tensor | None,
    penalty: Tensor | None,
    scalars: list[float],
) -> None:
    state = [theta, grad, exp_avg, exp_avg_sq]
    _launch(_adamw_kernel, state, anchor, fisher, penalty, scalars)


@triton_op("rib::sgd_ewc_", mutates_args=("theta", "momentum_buffer", "penalty"))
def _sgd(
    theta: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    anchor: Tensor | None,
    fisher: Tensor | None,
    penalty: Tensor | None,
    scalars: list[float],
) -> None:
    _launch(_sgd_kernel, [theta, grad, momentum_buffer], anchor, fisher, penalty, scalars)


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles: name, fn, signature, constexprs, warps, bytes."""
    flags = ("HAS_ANCHOR", "HAS_FISHER", "WITH_PENALTY", "BLOCK")
    tensors = ("theta", "grad", "exp_avg", "exp_avg_sq", "momentum_buffer", "anchor", "fisher")
    kinds = dict.fromkeys((*tensors, "partials"), "*fp32") | {"n": "i32"}
    variants = {"plain": (), "identity": flags[:1], "ewc": flags[:2], "ewc+value": flags[:3]}
    specs = [
        {
            "name": f"{name} {variant}",
            "fn": fn,
            "signature": {a: kinds.get(a, "fp32") for a in fn.arg_names if a not in flags},
            "constexprs": {"BLOCK": _BLOCK} | {flag: flag in given for flag in flags[:3]},
            "num_warps": _WARPS,
            "bytes_per_element": 4 * (read + len(given[:2]) + written),
            "streams": (read + len(given[:2]), written),
        }
        for name, fn, read, written in (
            ("adamw_ewc_", _adamw_kernel, 4, 3),
            ("sgd_ewc_", _sgd_kernel, 3, 2),
        )
        for variant, given in variants.items()
    ]
    table = {"pointers": "*i64", "owners": "*i32", "firsts": "*i32", "sizes": "*i64"}
    table |= {"penalty": "*fp32", "partials": "*fp32", "arrived": "*i32"}
    table |= {"count": "i32", "blocks": "i32"}
    flags = (*flags, "ALIGNED")
    return specs + [
        {
            "name": f"{name} table {variant}",
            "fn": fn,
            "signature": {a: table.get(a, "fp32") for a in fn.arg_names if a not in flags},
            "constexprs": {"BLOCK": _BLOCK, "ALIGNED": True}
            | {flag: flag in given for flag in flags[:3]},
            "num_warps": _WARPS,
            "bytes_per_element": 4 * (read + len(given[:2]) + written),
            "streams": (read + len(given[:2]), written),
        }
        for name, fn, read, written in (
            ("adamw_ewc_", _adamw_table_kernel, 4, 3),
            ("sgd_ewc_", _sgd_table_kernel, 3, 2),
        )
        for variant, given in variants.items()
    ]
