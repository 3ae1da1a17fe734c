"""A copy of the ground cost for iterating, in 16 bits.

Sinkhorn's iterations read the whole matrix again and again, so what they read is stored: 16-bit
fixed point with an offset and a step a row. Unlike a stored kernel exp(-C / eps) it serves every
eps, cannot underflow, and is off by at most half a step everywhere (about 1e-5 of the mean cost).
Where eps or the gap is so small that even this shows, the copy is float32, at twice the time an
iteration. How far a copy may be from the exact costs is known, so that it can be certified on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.launch import padded, row_pitch
from kernels.transport.cost import GroundCost
from kernels.transport.quantize import quantize
from kernels.transport.sweep import PART

log = logging.getLogger(__name__)

# Numbers in a float64 strip of costs. CPU: 8 MiB, so that passes over it hit the cache, and that a
# product has 100 rows of 10,000 columns: with half as many its columns are packed twice as often.
STRIP = {"cpu": 1 << 20, "cuda": 1 << 25}
_STEPS = 65535  # of `quantize`
_HALF_STEP = 0.5 + 1e-9  # with float64's roundings


@dataclass(frozen=True)
class StoredCost:
    """Costs as offset[i] + step[i] * q[i, j]; q [n, m], or None to compute it at every reading.

    q: int16 from -32768, or float32 (steps of 1); on a GPU its rows lie a multiple of 64 numbers
    apart. offset, step, row_minimum: float64 [n]. slack: how far the cost of any plan with uniform
    marginals may be from the exact one.
    """

    cost: GroundCost
    dtype: torch.dtype
    q: Tensor | None
    offset: Tensor
    step: Tensor
    row_minimum: Tensor
    slack: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.cost.shape

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, q of these rows): all at once where q is held."""
        if self.q is not None:
            yield slice(0, len(self.q)), self.q
            return
        for part in _packed(self.cost, self.dtype):
            yield part.rows, part.q

    def strips(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """(slice, costs in float64) of consecutive rows of a q that is held."""
        assert self.q is not None, "the copy is not held"
        for start in range(0, len(self.q), rows):
            strip = slice(start, start + rows)
            costs = torch.addcmul(self.offset[strip, None], self.step[strip, None], self.q[strip])
            yield strip, costs


def store(
    cost: GroundCost, dtype: torch.dtype = torch.int16, *, memory: int | None = None
) -> StoredCost:
    """The copy of a cost matrix to iterate on; not held if it is too large for the memory.

    dtype: torch.int16, off by about 2e-5 of the mean cost at 768 dimensions, or torch.float32, off
    by 2e-7. memory: bytes that may be taken (default: as many as it takes). Raises ValueError when
    not even the other buffers fit.
    """
    n, m = cost.shape
    device = cost.x.x.device
    allowed = math.inf if memory is None else memory
    beside = beside_the_copy(n, m, device)
    if beside > allowed:
        raise ValueError(
            f"strips and partial sums of the {n} x {m} cost matrix take {beside / 1e9:.3g} GB, but "
            f"{allowed / 1e9:.3g} GB may be used; free memory, or sample fewer images"
        )
    q, held = None, dtype.itemsize * n * row_pitch(m, device)
    if beside + held <= allowed:
        q = padded((n, m), cost.x.x, dtype)
    else:
        log.info(
            "the %d x %d cost matrix is computed again at every reading: its copy takes %.3g GB, "
            "but %.3g GB may be used",
            *(n, m, held / 1e9, max(0, allowed - beside) / 1e9),
        )
    low, step, error = torch.empty(3, n, dtype=torch.float64, device=device)
    for part in _packed(cost, dtype, q):
        low[part.rows], step[part.rows], error[part.rows] = part.low, part.step, part.error
    offset = low + (_STEPS + 1) // 2 * step if dtype == torch.int16 else low
    return StoredCost(cost, dtype, q, offset, step, low, float(error.mean()))


def beside_the_copy(n: int, m: int, device: torch.device) -> int:
    """Bytes that solving takes in addition to the copy: four float64 strips, and partial column
    sums."""
    return 4 * 8 * max(STRIP[device.type], m) + 4 * -(-n // PART) * m


def most_bytes(n: int, m: int, d: int, device: torch.device) -> int:
    """Bytes that making and solving an n x m cost of d dimensions takes at most, its copy held.

    The copy is counted as float32; the sorted features of both sets as float64, with a temporary of
    each. The table of label distances is not counted.
    """
    return 16 * (n + m) * d + 4 * n * row_pitch(m, device) + beside_the_copy(n, m, device)


class _Part(NamedTuple):
    """Rows of the copy: q, costs' minima, steps, and how far storing puts an entry off at most."""

    rows: slice
    q: Tensor
    low: Tensor
    step: Tensor
    error: Tensor


def _packed(cost: GroundCost, dtype: torch.dtype, held: Tensor | None = None) -> Iterator[_Part]:
    """Consecutive strips of the copy, whose q are rows of `held` or, without it, fresh."""
    for rows, costs in cost.strips(max(1, STRIP[cost.x.x.device.type] // cost.shape[1])):
        q = padded(costs.shape, costs, dtype) if held is None else held[rows]
        if dtype == torch.int16:
            low, step = quantize(costs, q)
            yield _Part(rows, q, low, step, _HALF_STEP * step)
        else:
            low, high = costs.amin(1), costs.amax(1)
            q.copy_(costs.sub_(low[:, None]))
            error = (high - low) * torch.finfo(torch.float32).eps
            yield _Part(rows, q, low, torch.ones_like(low), error)
