"""Depthwise convolutions on maps that are smaller than their kernel, on a CPU.

There oneDNN has no depthwise kernel for the gradient of the weights: it computes that of a dense
convolution of 16 channels each, most of it for nothing. In EfficientNet-Lite0 at 64 px this took a
fifth of a training step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class SmallMaps(nn.Conv2d):
    """A depthwise convolution of stride 1 that keeps the size of its map. Where the kernel is
    larger than the map, each tap's gradient is a sum of products; elsewhere it is torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] >= self.kernel_size[0] or x.shape[3] >= self.kernel_size[1]:
            return super().forward(x)
        outputs = _Convolution.apply(x, self.weight, self.padding)
        return outputs if self.bias is None else outputs + self.bias[:, None, None]


def use_small_maps(net: nn.Module) -> None:
    """Make all depthwise convolutions of a network that can be `SmallMaps` so, in place."""
    for module in net.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == module.in_channels == module.out_channels
            and module.stride == module.dilation == (1, 1)
            and module.padding == tuple(side // 2 for side in module.kernel_size)
            and module.padding_mode == "zeros"
            and all(side % 2 for side in module.kernel_size)
        ):
            module.__class__ = SmallMaps


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, outputs_grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        x_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = conv2d_input(
                x.shape, weight, outputs_grad, padding=ctx.padding, groups=len(weight)
            )
        if ctx.needs_input_grad[1]:
            weight_grad = torch.empty_like(weight)
            for i, (rows, x_rows) in enumerate(_overlaps(x.shape[2], weight.shape[2])):
                for j, (columns, x_columns) in enumerate(_overlaps(x.shape[3], weight.shape[3])):
                    products = outputs_grad[:, :, rows, columns] * x[:, :, x_rows, x_columns]
                    weight_grad[:, 0, i, j] = products.sum((0, 2, 3))
        return x_grad, weight_grad, None


def _overlaps(size: int, kernel: int) -> Iterator[tuple[slice, slice]]:
    """For each tap of a kernel, the outputs that see a place of the map, and these places."""
    for shift in range(-(kernel // 2), kernel // 2 + 1):
        left, right = max(0, -shift), max(0, shift)
        yield slice(left, max(0, size - right)), slice(right, max(0, size - left))
