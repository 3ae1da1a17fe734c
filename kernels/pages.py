"""Huge pages for what an optimizer reads and writes in every step.

A step walks over its tensors from end to end and does next to nothing with a number, so finding
4 KiB pages one after the other is part of its time (docs/performance.md). Linux hands out 2 MiB
pages to those who ask, which torch does not.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_HUGE = 1 << 21
_ALIGNED = 16  # elements: a cache line


def zeros_like(tensor: Tensor) -> Tensor:
    """`foreach_zeros_like` for one tensor."""
    (zeros,) = foreach_zeros_like([tensor])
    return zeros


def foreach_zeros_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """fp32 zeros with the shapes, layouts and device of dense tensors, which share one device.

    On a CPU those of 2 MiB and more together lie one behind the other in memory of their own, in
    huge pages where the system has them to give.
    """
    sizes = [-(-tensor.numel() // _ALIGNED) * _ALIGNED for tensor in tensors]
    if 4 * sum(sizes) < _HUGE or tensors[0].device.type != "cpu":
        return [torch.zeros_like(t, dtype=torch.float32, requires_grad=False) for t in tensors]
    flat = _mapped(sum(sizes))
    starts = itertools.accumulate(sizes, initial=0)
    return [
        flat.as_strided(tensor.shape, tensor.stride(), start)
        for tensor, start in zip(tensors, starts, strict=False)
    ]


def _mapped(numel: int) -> Tensor:
    """At least numel fp32 zeros; a whole number of huge pages, or Linux would not align them."""
    size = -(-4 * numel // _HUGE) * _HUGE
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(numel)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.float32)
