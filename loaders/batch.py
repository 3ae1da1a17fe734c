"""What every source of images gives, so that the engine need not know where the pixels are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from loaders.pack import Pack


@dataclass(frozen=True)
class Batch:
    """b samples of a pack, by `index` (int64 [b], their positions).

    It has no labels: a pack numbers its classes apart from any model's outputs (`Trained.targets`
    gives those). Images are on the device, and are gathered when `images` is first read, so that
    work on cached features never touches a pixel.
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


class Source(Protocol):
    """A pack on a device; `batches` gives a Batch for each index array, in order."""

    pack: Pack

    def batches(self, batches: Iterable[np.ndarray]) -> Iterator[Batch]: ...


def on_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small array copied to the device. The host does not wait for the copy to a GPU."""
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def checked_index(index: np.ndarray, pack: Pack) -> np.ndarray:
    """`index` as int64 [b]. Raises IndexError where it is not 1-D, whole and inside the pack."""
    index = np.asarray(index)
    is_whole = index.dtype.kind in "iu" or not index.size
    if index.ndim != 1 or not is_whole or not ((index >= 0) & (index < len(pack))).all():
        raise IndexError(
            f"{pack.name}: a batch is a 1-D array of whole numbers below {len(pack)}, not {index!r}"
        )
    return index.astype(np.int64)
