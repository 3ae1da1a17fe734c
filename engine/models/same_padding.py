"""TensorFlow's `SAME` padding without a padded copy of the image."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn


class PaddedKernel(nn.Conv2d):
    """A `Conv2dSame` that pads its kernel, with the same outputs: bit for bit with oneDNN on x86.

    With a stride, `SAME` may pad one pixel more below and on the right than above and on the left.
    Convolutions pad both sides alike, so timm copies the image into a larger one. Here both sides
    are padded by the larger number, and a row and a column of zeros before the kernel's own bring
    its weights back to where they belong. It is for evaluation: the gradient of a larger kernel
    takes longer than the copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        sides = zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        totals = [int(get_same_padding(size, kernel, stride, 1)) for size, kernel, stride in sides]
        below, right = (total - total // 2 for total in totals)
        weight = F.pad(self.weight, (totals[1] % 2, 0, totals[0] % 2, 0))
        return F.conv2d(x, weight, self.bias, self.stride, (below, right), 1, self.groups)


def pad_kernels(net: nn.Module) -> None:
    """Make every `Conv2dSame` of a network that is not dilated pad its kernel."""
    for module in net.modules():
        if type(module) is Conv2dSame and module.dilation == (1, 1):
            module.__class__ = PaddedKernel
