"""A 16-bit copy of the ground cost for Sinkhorn's iterations.

The iterations read the whole matrix again and again. The copy is 16-bit fixed point, with one
offset and one step per row. Unlike a stored kernel exp(-C / eps), it works for any eps, cannot
underflow, and has an error of at most half a step (about 1e-5 of the mean cost). If eps or the gap
is too small for this error, the copy is float32, which takes twice the time per iteration. The
error of the copy is known, so values can be certified on it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.launch import padded, row_pitch
from kernels.transport.cost import GroundCost
from kernels.transport.sweep import PART

log = logging.getLogger(__name__)

# Numbers in a float64 strip of costs. CPU: 8 MiB, so that passes over it hit the cache and a
# product has 100 rows of 10,000 columns; with half the rows, BLAS packs the columns twice as often.
STRIP = {"cpu": 1 << 20, "cuda": 1 << 25}
_STEPS = 65535  # in 16 bits
_LEAST = torch.finfo(torch.float32).tiny  # smallest step, for rows of equal costs
_HALF_STEP = 0.5 + 1e-9  # allows for float64 rounding


@dataclass(frozen=True)
class StoredCost:
    """Costs as offset[i] + step[i] * q[i, j].

    q: [n, m], int16 from -32768 or float32 (with steps of 1); None to recompute it at each read. On
    a GPU its rows are padded to a multiple of 64 numbers. offset, step, row_minimum: float64 [n].
    slack: maximum error of the cost of any plan with uniform marginals.
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
        """Yields (rows, q of these rows), all at once if q is in memory."""
        if self.q is not None:
            yield slice(0, len(self.q)), self.q
            return
        for rows, q, _ in _packed(self.cost, self.dtype):
            yield rows, q

    def strips(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yields (slice, costs in float64) of consecutive rows; q must be in memory."""
        assert self.q is not None, "the copy is not in memory"
        for start in range(0, len(self.q), rows):
            strip = slice(start, start + rows)
            costs = torch.addcmul(self.offset[strip, None], self.step[strip, None], self.q[strip])
            yield strip, costs


def store(
    cost: GroundCost, dtype: torch.dtype = torch.int16, *, memory: int | None = None
) -> StoredCost:
    """Returns the copy of a cost matrix to iterate on, without q if that is too large for the
    memory.

    dtype: torch.int16, with an error of about 2e-5 of the mean cost at 768 dimensions, or
    torch.float32, with 2e-7. memory: maximum bytes (default: unlimited). Raises ValueError if even
    the other buffers do not fit.
    """
    n, m = cost.shape
    device = cost.x.x.device
    allowed = math.inf if memory is None else memory
    beside = beside_the_copy(n, m, device)
    if beside > allowed:
        raise ValueError(
            f"strips and partial sums of the {n} x {m} cost matrix need {beside / 1e9:.3g} GB, but "
            f"only {allowed / 1e9:.3g} GB may be used; free memory or sample fewer images"
        )
    q, held = None, dtype.itemsize * n * row_pitch(m, device)
    if beside + held <= allowed:
        q = padded((n, m), cost.x.x, dtype)
    else:
        log.info(
            "recomputing the %d x %d cost matrix at each read: a copy needs %.3g GB, but only "
            "%.3g GB may be used",
            *(n, m, held / 1e9, max(0, allowed - beside) / 1e9),
        )
    low, step, error = torch.empty(3, n, dtype=torch.float64, device=device)
    for rows, _, facts in _packed(cost, dtype, q):
        low[rows], step[rows], error[rows] = facts
    offset = low + (_STEPS + 1) // 2 * step if dtype == torch.int16 else low
    return StoredCost(cost, dtype, q, offset, step, low, float(error.mean()))


def beside_the_copy(n: int, m: int, device: torch.device) -> int:
    """Bytes needed in addition to the copy: four float64 strips and partial column sums."""
    return 4 * 8 * max(STRIP[device.type], m) + 4 * -(-n // PART) * m


def most_bytes(n: int, m: int, d: int, device: torch.device) -> int:
    """Maximum bytes for building and solving an n x m cost of d dimensions with its copy in memory.

    Counts the copy as float32, and the sorted features of both datasets as float64 with a temporary
    of each. Does not count the table of label distances.
    """
    return 16 * (n + m) * d + 4 * n * row_pitch(m, device) + beside_the_copy(n, m, device)


def _packed(
    cost: GroundCost, dtype: torch.dtype, held: Tensor | None = None
) -> Iterator[tuple[slice, Tensor, tuple[Tensor, ...]]]:
    """Consecutive strips of the copy: rows, q, and the costs' minima, steps, and the maximum error
    of an entry. Each q is a slice of `held`, or new if `held` is None."""
    for rows, costs in cost.strips(max(1, STRIP[cost.x.x.device.type] // cost.shape[1])):
        q = padded(costs.shape, costs, dtype) if held is None else held[rows]
        low, high = costs.amin(1), costs.amax(1)  # aminmax takes nine times as long on a CPU
        if dtype == torch.int16:
            step = ((high - low) / _STEPS).clamp_(min=_LEAST)
            steps = costs.sub_(low[:, None]).mul_(step.reciprocal()[:, None]).round_()
            q.copy_(steps.sub_((_STEPS + 1) // 2))
            yield rows, q, (low, step, _HALF_STEP * step)
        else:
            q.copy_(costs.sub_(low[:, None]))
            error = (high - low) * torch.finfo(torch.float32).eps
            yield rows, q, (low, torch.ones_like(low), error)
