"""EWC's optimizer steps on the CPU, compiled by numba in about a second.

One pass over memory, as on a GPU, and the penalty's value on the way. What takes time is waiting
for memory: with the penalty a core reads six streams, which its own prefetching serves worse than
four, so the loops ask for what they will need (docs/performance.md). See `kernels.ewc`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.threads import spread

# Elements asked for at once, _AHEAD elements before they are read; their penalties are added up in
# fp32, before the sum goes on in fp64.
_LINE = 64
_AHEAD = 128
# Elements from which a thread's share repays waking it.
_SHARE = 1 << 17


Row = tuple[list[Tensor | None], Tensor]


def step(name: str, rows: Sequence[Row]) -> float:
    """Runs a loop of `_loops` on as many of torch's threads as pay; the penalty's value.

    A row is a tensor's step: contiguous fp32 tensors [P] in the order of the twin in
    `kernels.reference`, theta first, and the twin's scalars in fp32. A row longer than a thread's
    share is cut into equal pieces, and each thread takes the next piece that is left.
    """
    loop = _loops()[name]
    arrays: list[tuple[list[Any], Any]] = [
        ([None if t is None else t.detach().numpy() for t in flat], scalars.numpy())
        for flat, scalars in rows
    ]
    numel = sum(len(flat[0]) for flat, _ in arrays)
    threads = max(1, min(torch.get_num_threads(), numel // _SHARE))
    share = max(_LINE, -(-numel // (threads * _LINE)) * _LINE)
    pieces = [
        [*(a if a is None else a[start : start + share] for a in flat), scalars]
        for flat, scalars in arrays
        for start in range(0, len(flat[0]), share)
    ]
    return sum(spread(loop, pieces, threads))


@functools.cache
def _loops() -> dict[str, Any]:
    """Both steps over flat arrays, compiled; they return the penalty's value.

    Offsets are unsigned: numba asks of others whether they are negative, and the loop would not
    vectorise. NaN and infinity are what they are anywhere else.
    """
    import numba
    from llvmlite import ir
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

    @intrinsic
    def prefetch(typing, array, at):
        """Asks for array[at] in L2: asking L1 took longer (docs/performance.md).

        Beyond the end nothing comes of it.
        """

        def generate(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            pointer = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, *[ir.IntType(32)] * 3])
            hint = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
            read, keep, data_cache = (context.get_constant(numba.int32, v) for v in (0, 2, 1))
            builder.call(hint, [pointer, read, keep, data_cache])
            return context.get_dummy_value()

        return numba.void(array, at), generate

    @numba.njit(**options)
    def ahead(array, start):
        if array is not None:
            for at in range(start, start + u64(_LINE), u64(16)):
                prefetch(array, at + u64(_AHEAD))  # pyright: ignore[reportCallIssue]

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
            ahead(theta, start)
            ahead(grad, start)
            ahead(exp_avg, start)
            ahead(exp_avg_sq, start)
            ahead(anchor, start)
            ahead(fisher, start)
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
            ahead(theta, start)
            ahead(grad, start)
            ahead(momentum_buffer, start)
            ahead(anchor, start)
            ahead(fisher, start)
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
