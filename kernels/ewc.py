"""Optimizer steps with the EWC penalty folded in: the regulariser rides in a pass that runs anyway.

Added to the loss, the penalty lam / 2 * sum_i F_i (theta_i - theta*_i)^2 costs several passes over
the parameters, forward and backward. Its gradient is elementwise, so the optimizer's own pass can
form it from two more reads:

    g       = grad + lam * F * (theta - theta*)
    AdamW     m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
              theta = (1 - lr wd) theta - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
    SGD       m = momentum m + g + wd theta;  theta = theta - lr m

Bytes moved per fp32 parameter: AdamW 36 (28 without the penalty), SGD with momentum 28 (20). The
penalty's value is accumulated on the way, without a further pass. `kernels/ewc_cpu.py` holds the
CPU's loops.

Sources: Kirkpatrick et al. 2017, equation 3; Loshchilov & Hutter 2019, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import ewc_cpu, reference
from kernels.launch import jit, launcher, tl

_BLOCK = 1024
_WARPS = 4
# Elements: a chunk's temporaries stay in cache, and are too small to be mapped afresh each time.
_CHUNK = 1 << 16


@torch.no_grad()
def adamw_ewc_(
    theta: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    anchor: Tensor | None = None,
    fisher: Tensor | None = None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    lam: float = 0.0,
    penalty: Tensor | None = None,
    compiled: bool = True,
) -> None:
    """One AdamW step (decoupled weight decay) on the loss plus the EWC penalty, in place.

    theta, grad, exp_avg, exp_avg_sq, anchor, fisher: contiguous fp32 tensors of one shape on one
    device, which do not overlap; theta, exp_avg and exp_avg_sq are updated. anchor None: no
    penalty; fisher None: the identity. step counts from 1. penalty: fp32 or fp64 scalar on the same
    device, to which the penalty's value before the step is added.

    CUDA tensors go to the Triton kernel; others to numba's loop, or, with compiled=False, without
    numba, or inside torch.compile, to the reference, in cache-sized chunks (nothing to compile, but
    several times slower).

    Raises ValueError, naming the tensor, for a shape, dtype, device or layout that does not fit.
    """
    tensors = {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    _check(theta, tensors, anchor, fisher, penalty)
    if step < 1:
        raise ValueError(f"step counts from 1, not {step}")
    beta1, beta2 = betas
    scalars = [
        lam,
        1 - lr * weight_decay,
        lr / (1 - beta1**step),
        1 - beta1,
        beta2,
        1 - beta2,
        (1 - beta2**step) ** -0.5,
        eps,
    ]
    flat = [_flat(t) for t in (theta, grad, exp_avg, exp_avg_sq, anchor, fisher)]
    if theta.is_cuda:
        _adamw(*[*flat, penalty, scalars])
    else:
        _on_cpu(reference.adamw_ewc_, flat, scalars, penalty, compiled)


@torch.no_grad()
def sgd_ewc_(
    theta: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    anchor: Tensor | None = None,
    fisher: Tensor | None = None,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    first: bool = False,
    lam: float = 0.0,
    penalty: Tensor | None = None,
    compiled: bool = True,
) -> None:
    """One step of SGD with momentum on the loss plus the EWC penalty, in place.

    As `adamw_ewc_`, except that weight decay is part of the gradient, as in torch.optim.SGD.
    first: momentum_buffer's content is ignored and becomes the gradient (its first step).
    """
    _check(theta, {"grad": grad, "momentum_buffer": momentum_buffer}, anchor, fisher, penalty)
    if first:
        momentum_buffer.zero_()
    scalars = [lam, weight_decay, momentum, lr]
    flat = [_flat(t) for t in (theta, grad, momentum_buffer, anchor, fisher)]
    if theta.is_cuda:
        _sgd(*[*flat, penalty, scalars])
    else:
        _on_cpu(reference.sgd_ewc_, flat, scalars, penalty, compiled)


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.view(-1)


def _check(
    theta: Tensor,
    others: dict[str, Tensor],
    anchor: Tensor | None,
    fisher: Tensor | None,
    penalty: Tensor | None,
) -> None:
    if fisher is not None and anchor is None:
        raise ValueError("fisher is given without an anchor to measure the distance from")
    optional = {"anchor": anchor, "fisher": fisher}
    present = others | {name: t for name, t in optional.items() if t is not None}
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


def _on_cpu(
    twin: Callable[..., Tensor | None],
    flat: list[Tensor | None],
    scalars: list[float],
    penalty: Tensor | None,
    compiled: bool,
) -> None:
    theta = flat[0]
    assert theta is not None
    numel = theta.numel()
    # A tensor: numbers that change with every step must not be traced or compiled as constants.
    values = torch.tensor(scalars, dtype=theta.dtype, device=theta.device)
    tracing = torch.compiler.is_compiling()
    if compiled and ewc_cpu.HAS_NUMBA and theta.device.type == "cpu" and not tracing:
        value = ewc_cpu.step(twin.__name__, flat, values)
        if penalty is not None:
            penalty.add_(value)
        return
    chunk = max(numel, 1) if tracing else _CHUNK
    for start in range(0, numel, chunk):
        part = [t if t is None else t[start : start + chunk] for t in flat]
        value = twin(*part, values, penalty is not None)
        if penalty is not None and value is not None:
            penalty.add_(value)


@jit
def _penalised(
    theta,
    grad,
    anchor,
    fisher,
    partials,
    at,
    valid,
    lam,
    HAS_ANCHOR: tl.constexpr,
    HAS_FISHER: tl.constexpr,
    WITH_PENALTY: tl.constexpr,
):
    """theta and the gradient with the penalty's; the block's share of the penalty is stored."""
    x = tl.load(theta + at, mask=valid, other=0.0)
    g = tl.load(grad + at, mask=valid, other=0.0)
    if HAS_ANCHOR:
        distance = x - tl.load(anchor + at, mask=valid, other=0.0)
        pull = lam * distance
        if HAS_FISHER:
            pull *= tl.load(fisher + at, mask=valid, other=0.0)
        g += pull
        if WITH_PENALTY:
            tl.store(partials + tl.program_id(0), tl.sum(0.5 * pull * distance, 0))
    return x, g


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
    valid = at < n
    x, g = _penalised(
        theta, grad, anchor, fisher, partials, at, valid, lam, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY
    )
    m = tl.load(exp_avg + at, mask=valid, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=valid, other=0.0)
    m += one_minus_beta1 * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    x = decay * x - step_size * m / (tl.sqrt(v) * v_scale + eps)
    tl.store(theta + at, x, mask=valid)
    tl.store(exp_avg + at, m, mask=valid)
    tl.store(exp_avg_sq + at, v, mask=valid)


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
    valid = at < n
    x, g = _penalised(
        theta, grad, anchor, fisher, partials, at, valid, lam, HAS_ANCHOR, HAS_FISHER, WITH_PENALTY
    )
    m = momentum * tl.load(momentum_buffer + at, mask=valid, other=0.0) + (g + weight_decay * x)
    tl.store(theta + at, x - lr * m, mask=valid)
    tl.store(momentum_buffer + at, m, mask=valid)


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
    return [
        {
            "name": f"{name} {variant}",
            "fn": fn,
            "signature": {a: kinds.get(a, "fp32") for a in fn.arg_names if a not in flags},
            "constexprs": {
                "BLOCK": _BLOCK,
                "HAS_ANCHOR": variant != "plain",
                "HAS_FISHER": variant != "plain",
                "WITH_PENALTY": variant == "ewc+value",
            },
            "num_warps": _WARPS,
            "bytes_per_element": moved + (0 if variant == "plain" else 8),
        }
        for name, fn, moved in (("adamw_ewc_", _adamw_kernel, 28), ("sgd_ewc_", _sgd_kernel, 20))
        for variant in ("plain", "ewc", "ewc+value")
    ]
