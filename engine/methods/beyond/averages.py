"""Moving averages of weights during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LISTS: Any = torch  # its operations on lists of tensors have no type stubs


@torch.no_grad()
def move(mean: nn.Module, student: nn.Module, share: torch.Tensor) -> None:
    """Update parameters and floating-point buffers in place: mean += share (student - mean).

    Integer buffers are copied. share: a zero-dimensional tensor on the same device.
    """
    now, means = student.state_dict(), mean.state_dict()
    floating = [name for name, tensor in means.items() if tensor.is_floating_point()]
    changes = LISTS._foreach_sub([now[n] for n in floating], [means[n] for n in floating])
    LISTS._foreach_mul_(changes, share)
    LISTS._foreach_add_([means[n] for n in floating], changes)
    for name in means.keys() - set(floating):  # batch norm's `num_batches_tracked`
        means[name].copy_(now[name])
