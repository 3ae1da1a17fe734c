"""Optimizer steps with the EWC penalty folded in: the regulariser rides in a pass that runs anyway.

Added to the loss, the penalty lam / 2 * sum_i F_i (theta_i - theta*_i)^2 costs several passes over
the parameters, forward and backward. Its gradient is elementwise, so the optimizer's own pass can
form it from two more reads:

    g       = grad + lam * F * (theta - theta*)
    AdamW     m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
              theta = (1 - lr wd) theta - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
    SGD       m = momentum m + g + wd theta;  theta = theta - lr m

Bytes moved per fp32 parameter: AdamW 36 (28 without the penalty), SGD with momentum 28 (20). The
penalty's value is accumulated on the way, without a further pass. On the CPU the loop is compiled
by numba where it is installed, in about a second.

Sources: Kirkpatrick et al. 2017, equation 3; Loshchilov & Hutter 2019, algorithm 2.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, tl

HAS_NUMBA = importlib.util.find_spec("numba") is not None

_BLOCK = 1024
_WARPS = 4
# Elements: a chunk's temporaries stay in cache, and are too small to be mapped afresh each time.
_CHUNK = 1 << 16
# Elements whose penalties the numba loop adds up in fp32 before it goes on in fp64.
_LINE = 1024
# Elements from which a thread's share repays handing it over.
_SHARE = 1 << 17


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
    if compiled and HAS_NUMBA and theta.device.type == "cpu" and not tracing:
        value = _on_threads(_loops()[twin.__name__], flat, numel, values)
        if penalty is not None:
            penalty.add_(value)
        return
    chunk = max(numel, 1) if tracing else _CHUNK
    for start in range(0, numel, chunk):
        part = [t if t is None else t[start : start + chunk] for t in flat]
        value = twin(*part, values, penalty is not None)
        if penalty is not None and value is not None:
            penalty.add_(value)


def _on_threads(loop: Any, flat: list[Tensor | None], numel: int, scalars: Tensor) -> float:
    """Runs the loop on as many of torch's threads as pay; the penalty's value."""
    arrays = [None if t is None else t.detach().numpy() for t in flat]
    threads = max(1, min(torch.get_num_threads(), numel // _SHARE))
    share = -(-numel // (threads * _LINE)) * _LINE or _LINE

    def run(start: int) -> float:
        part = [None if a is None else a[start : start + share] for a in arrays]
        return loop(*part, scalars.numpy())

    if threads == 1:
        return run(0)
    others = [_pool().submit(run, start) for start in range(share, numel, share)]
    return run(0) + sum(other.result() for other in others)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="ewc")


@functools.cache
def _loops() -> dict[str, Any]:
    """Both steps over flat arrays, compiled; they return the penalty's value.

    Offsets are unsigned: numba asks of others whether they are negative, and the loop would not
    vectorise. NaN and infinity are what they are anywhere else.
    """
    import numba
    from numba.extending import intrinsic

    f32, u64 = numba.float32, numba.uint64
    options = {"error_model": "numpy", "nogil": True}

    @intrinsic
    def arrays_are_distinct(typing):
        """Or LLVM would have to compare more addresses at run time than it is willing to."""

        def generate(context, builder, signature, arguments):
            for argument in builder.function.args:
                if argument.type == context.get_value_type(f32).as_pointer():
                    argument.add_attribute("noalias")
            return context.get_dummy_value()

        return numba.void(), generate

    @numba.njit(fastmath={"reassoc", "nsz"}, **options)
    def add(total, value):
        """A sum in any order, unlike the rest of the loop."""
        return total + value

    @numba.njit(fastmath={"contract"}, **options)
    def pull(theta, anchor, fisher, lam, at):
        """The penalty's gradient, and twice its value."""
        if anchor is None:
            return f32(0.0), f32(0.0)
        distance = theta[at] - anchor[at]
        gradient = lam * distance
        if fisher is not None:
            gradient *= fisher[at]
        return gradient, gradient * distance

    @numba.njit(fastmath={"contract"}, **options)
    def adamw_ewc_(theta, grad, exp_avg, exp_avg_sq, anchor, fisher, scalars):
        arrays_are_distinct()  # pyright: ignore[reportCallIssue]
        lam, decay, step_size, one_minus_beta1 = scalars[0], scalars[1], scalars[2], scalars[3]
        beta2, one_minus_beta2, v_scale, eps = scalars[4], scalars[5], scalars[6], scalars[7]
        numel, line, value = u64(theta.size), u64(_LINE), 0.0
        for start in range(u64(0), numel, line):
            of_line = f32(0.0)
            for at in range(start, min(start + line, numel)):
                gradient, twice = pull(theta, anchor, fisher, lam, at)
                of_line = add(of_line, twice)
                g = grad[at] + gradient
                m = exp_avg[at] + one_minus_beta1 * (g - exp_avg[at])
                v = beta2 * exp_avg_sq[at] + one_minus_beta2 * g * g
                exp_avg[at] = m
                exp_avg_sq[at] = v
                theta[at] = decay * theta[at] - step_size * m / (math.sqrt(v) * v_scale + eps)
            value += of_line
        return 0.5 * value

    @numba.njit(fastmath={"contract"}, **options)
    def sgd_ewc_(theta, grad, momentum_buffer, anchor, fisher, scalars):
        arrays_are_distinct()  # pyright: ignore[reportCallIssue]
        lam, weight_decay, momentum, lr = scalars[0], scalars[1], scalars[2], scalars[3]
        numel, line, value = u64(theta.size), u64(_LINE), 0.0
        for start in range(u64(0), numel, line):
            of_line = f32(0.0)
            for at in range(start, min(start + line, numel)):
                gradient, twice = pull(theta, anchor, fisher, lam, at)
                of_line = add(of_line, twice)
                g = grad[at] + gradient + weight_decay * theta[at]
                m = momentum * momentum_buffer[at] + g
                momentum_buffer[at] = m
                theta[at] -= lr * m
            value += of_line
        return 0.5 * value

    return {"adamw_ewc_": adamw_ewc_, "sgd_ewc_": sgd_ewc_}


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
