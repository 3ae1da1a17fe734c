"""From a strip of a float32 product to 16-bit costs in two readings, on the CPU.

A cost needs norms, a label term and no negative rounding, 16 bits of it the row's minimum, maximum
and step: a dozen passes as PyTorch's operators, each over a strip that no longer fits the cache.
Two compiled loops read it twice: 0.11 CPU-seconds for 10k x 10k samples, beside 2 for their product
at 768 dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.threads import once

COMPILE_FROM = 1 << 22  # costs: what compiling (about 1 s in each process) would have to repay


def quantize(
    product: Tensor, own: Tensor, others: Tensor, which: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q int16 [n, m], low and step float32 [n]: max(product_ij + others[which_i, j] + own_i, 0) is
    low_i + step_i (q_ij + 32768) up to half a step.

    product: float32 [n, m], overwritten; own: float32 [n]; others: float32 [k, m]; which: int64 [n]
    in [0, k).
    """
    q = torch.empty(product.shape, dtype=torch.int16)
    low, step = torch.empty(2, len(product))
    tensors = product, own, others, which, q, low, step
    _compiled()(*(tensor.numpy() for tensor in tensors))
    return q, low, step


def rounding(kind: str) -> Any:
    """LLVM's `floor` or `rint` of a float32, for compiled loops."""
    import numba
    from numba.extending import intrinsic

    @intrinsic
    def rounded(typing, x):
        def generate(context, builder, signature, arguments):
            function = builder.module.declare_intrinsic(f"llvm.{kind}", [arguments[0].type])
            return builder.call(function, arguments)

        return numba.float32(numba.float32), generate

    return rounded


@once
def _compiled() -> Any:
    import numba

    f32, i16, rint = numba.float32, numba.int16, rounding("rint")
    zero, steps, least = f32(0.0), f32(65535.0), f32(torch.finfo(torch.float32).tiny)

    @numba.njit(fastmath=True, nogil=True)
    def run(product, own, others, which, q, low, step):
        n, m = product.shape
        for i in range(n):
            row, other, mine = product[i], others[which[i]], own[i]
            smallest = largest = max(row[0] + (other[0] + mine), zero)
            for j in range(m):
                value = max(row[j] + (other[j] + mine), zero)
                row[j] = value
                smallest = min(smallest, value)
                largest = max(largest, value)
            low[i] = smallest
            step[i] = max((largest - smallest) / steps, least)
            inverse = f32(1.0) / step[i]
            for j in range(m):
                q[i, j] = i16(rint((row[j] - smallest) * inverse) - f32(32768.0))  # pyright: ignore[reportCallIssue]

    return run
