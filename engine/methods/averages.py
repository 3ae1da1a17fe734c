"""Moving averages of the weights that are being trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LISTS: Any = torch  # whose operations on lists of tensors have no types


@torch.no_grad()
def move(mean: nn.Module, student: nn.Module, share: torch.Tensor) -> None:
    """mean += share (student - mean), of parameters and floating buffers; counts are copied.

    share: no dimension, on the device.
    """
    now, means = student.state_dict(), mean.state_dict()
    floating = [name for name, tensor in means.items() if tensor.is_floating_point()]
    changes = LISTS._foreach_sub([now[n] for n in floating], [means[n] for n in floating])
    LISTS._foreach_mul_(changes, share)
    LISTS._foreach_add_([means[n] for n in floating], changes)
    for name in means.keys() - set(floating):  # counts of batches
        means[name].copy_(now[name])
