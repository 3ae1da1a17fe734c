"""Squared per-example weight gradients, summed over the batch, without storing each of them.

For a linear layer y = W x over N tokens, the gradient of example b is G_b = sum_n g_bn x_bn^T. The
diagonal Fisher needs sum_b G_b^2 (elementwise), and B x O x I numbers are too many to store. A
batched product computes as many examples' gradients as fit the cache (CPU) or 256 MB (GPU), in 2 B
N O I FLOPs, as many as an ordinary weight gradient takes. With one token, (g x^T)^2 = g^2 (x^2)^T,
so the whole sum is one matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 26}  # gradient elements in memory at once


def outer_squares(output_gradients: Tensor, inputs: Tensor) -> Tensor:
    """Returns sum_b (sum_n g_bno x_bni)^2, [O, I] in fp32 (fp64 for fp64 inputs).

    output_gradients: [B, N, O]; inputs: [B, N, I]; any strides, one floating dtype. Products are in
    fp32 or wider; on CUDA they use TF32 if torch.set_float32_matmul_precision allows it.
    """
    g, x = accumulable(output_gradients), accumulable(inputs)
    if g.shape[1] == 1:
        return g[:, 0].square().t() @ x[:, 0].square()
    total = g.new_zeros(g.shape[2], x.shape[2])
    most = max(1, _NUMBERS[g.device.type] // max(1, total.numel()))
    held = g.new_empty(min(most, len(g)), *total.shape)
    for some_g, some_x in zip(g.split(most), x.split(most), strict=True):
        product = torch.bmm(some_g.mT, some_x, out=held[: len(some_g)])
        if len(product) == 1:
            total.addcmul_(product[0], product[0])
        else:
            total += product.square_().sum(0)
    return total


def accumulable(tensor: Tensor) -> Tensor:
    """Returns the tensor in fp32, or in its own dtype if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
