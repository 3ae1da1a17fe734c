"""From a strip of a float32 product to 16-bit costs in two readings, on the CPU.

A cost needs norms, a label term and no negative rounding, 16 bits of it the row's minimum, maximum
and step: a dozen passes as PyTorch's operators, each over a strip that no longer fits the cache.
Two compiled loops read it twice: 0.11 CPU-seconds for 10k x 10k samples, beside 2 for their product
at 768 dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

COMPILE_FROM = 1 << 19  # costs, as in `kernels.sweep`


def quantize(
    product: Tensor, own: Tensor, others: Tensor, which: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q int16 [n, m], low and step float32 [n]: max(product_ij + others[which_i, j] + own_i, 0) is
    low_i + step_i (q_ij + 32768) up to half a step.

    product: float32 [n, m], overwritten; own: float32 [n]; others: float32 [k, m]; which: int64 [n]
    in [0, k).
    """
    from kernels import transport_cpu

    q = torch.empty(product.shape, dtype=torch.int16)
    low, step = torch.empty(2, len(product))
    tensors = product, own, others, which, q, low, step
    transport_cpu.quantize(*(tensor.numpy() for tensor in tensors))
    return q, low, step
