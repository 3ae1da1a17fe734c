"""A batch of images: the common interface of `Resident` and `Stream`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """b samples of a pack, given by `index` (int64 [b], their positions).

    A batch has no labels, because a pack numbers its classes independently of a model's outputs;
    use `Trained.targets`. Images are gathered on the device when `images` is first read, so work on
    cached features never touches a pixel.
    """

    index: np.ndarray
    device: torch.device
    gather: Callable[[], torch.Tensor] = field(repr=False)

    @cached_property
    def images(self) -> torch.Tensor:
        """uint8 [b, 3, H, W] on the device, in channels_last memory; not normalised."""
        return self.gather()

    @cached_property
    def rows(self) -> torch.Tensor:
        """`index` on the device: int64 [b]."""
        return on_device(self.index, self.device)

    def __len__(self) -> int:
        return len(self.index)


def on_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a small array to the device, without blocking the host for a GPU."""
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
