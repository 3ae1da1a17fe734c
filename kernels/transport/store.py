"""A copy of the ground cost for iterating, in 16 bits.

Sinkhorn's iterations read the whole matrix again and again, so what they read is stored: 16-bit
fixed point with an offset and a step a row. Unlike a stored kernel exp(-C / eps) it serves every
eps, cannot underflow, and is off by at most half a step everywhere (about 1e-5 of the mean cost).
Where eps or the gap is so small that even this shows, the copy is float32, at twice the time an
iteration, and rounded once from float64 if need be. How far a copy may be from the exact costs is
bounded beforehand, so that it can be certified on.

Two 16-bit planes, of which iterations read the high one and certificates both, were counted and
left: float32 products must stay on the CPU, where float64's take twice their time, and so must the
choice of the planes to read where eps is small, so that as many cases are left. Writing both took
3.4 ns a cost for 2.1 of the high one (one thread, 4096 x 4096), and the kernels, which take either
dtype as they are, would read two tensors. What it would save is half the bytes of an iteration on a
float32 copy.
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
from kernels.transport.cost import STRIP_ROWS, GroundCost, most_blocks
from kernels.transport.cost_rows import ROWS
from kernels.transport.quantize import quantize, quantize_costs

log = logging.getLogger(__name__)

# Numbers in a float64 strip of the certificate. CPU: 4 MiB, so that passes over it hit the cache.
CERTIFIED_STRIP = {"cpu": 1 << 19, "cuda": 1 << 25}
# Entries a row, on average, of a plan that counts as sparse; with its transpose and what making
# both takes, each is 64 bytes.
MOST_ENTRIES = 256
_ENTRY_BYTES = 64
_STEPS = 65535  # of `quantize`
_HALF_STEP = 0.52  # with 4 roundings of up to 65535 steps


class Copy(NamedTuple):
    """What a copy of the cost is held and computed in. In units of the mean cost, its values are
    off by at most about 2e-5 (COARSE), 6e-6 (SINGLE) and 2e-7 (FINE) at 768 dimensions."""

    held: torch.dtype
    computed: torch.dtype


COARSE = Copy(torch.int16, torch.float32)
SINGLE = Copy(torch.float32, torch.float32)
FINE = Copy(torch.float32, torch.float64)


@dataclass(frozen=True)
class StoredCost:
    """Costs as offset[i] + step[i] * q[i, j]; q [n, m], or None to compute it at every reading.

    q: int16 from -32768, or float32 (steps of 1); on a GPU its rows lie a multiple of 64 numbers
    apart. offset, step, row_minimum: float64 [n]. slack:
    how far the cost of any plan with uniform marginals may be from the exact one.
    """

    cost: GroundCost
    copy: Copy
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
        for part in _packed(self.cost, self.copy):
            yield part.rows, part.q

    def strips(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """(slice, costs in float64) of consecutive rows of a q that is held."""
        assert self.q is not None, "the copy is not held"
        for start in range(0, len(self.q), rows):
            strip = slice(start, start + rows)
            costs = torch.addcmul(self.offset[strip, None], self.step[strip, None], self.q[strip])
            yield strip, costs


def store(cost: GroundCost, *, copy: Copy = COARSE, memory: int | None = None) -> StoredCost:
    """The copy of a cost matrix to iterate on; not held if it is too large for the memory.

    memory: bytes that may be taken (default: as many as it takes). Raises ValueError when not even
    what is needed beside the copy fits.
    """
    n, m = cost.shape
    device = cost.x.x.device
    allowed = math.inf if memory is None else memory
    beside = beside_the_copy(cost)
    if beside > allowed:
        raise ValueError(
            f"strips and block sums of the {n} x {m} cost matrix take {beside / 1e9:.3g} GB, but "
            f"{allowed / 1e9:.3g} GB may be used; free memory, or sample fewer images"
        )
    q, held = None, copy.held.itemsize * n * row_pitch(m, device)
    if beside + held <= allowed:
        q = padded((n, m), cost.x.x, copy.held)
    else:
        log.info(
            "the %d x %d cost matrix is computed again at every reading: its copy takes %.3g GB, "
            "but %.3g GB may be used",
            *(n, m, held / 1e9, max(0, allowed - beside) / 1e9),
        )
    low, step, error = torch.empty(3, n, dtype=torch.float64, device=device)
    for part in _packed(cost, copy, q):
        low[part.rows], step[part.rows], error[part.rows] = part.low, part.step, part.error
    offset = low + (_STEPS + 1) // 2 * step if copy.held == torch.int16 else low
    slack = float(error.mean()) + (cost.rounding() if copy.computed == torch.float32 else 0.0)
    return StoredCost(cost, copy, q, offset, step, low, slack)


def beside_the_copy(cost: GroundCost) -> int:
    """Bytes that solving takes beside the copy: features in float32, four float64 strips, a sparse
    plan, and the column sums of blocks, once those of threads or of a strip and once in all."""
    (n, m), d, device = cost.shape, cost.x.x.shape[1], cost.x.x.device
    return _beside(n, m, d, len(cost.x.bounds) - 1, device)


def most_bytes(n: int, m: int, d: int, device: torch.device) -> int:
    """Bytes that making and solving an n x m cost of d dimensions takes at most, its copy held.

    The copy is counted as float32, and blocks as if there were as many as there may be; the sorted
    features of both sets as float64, with a float32 copy and a temporary of each. The table of
    label distances is not counted.
    """
    return (
        16 * (n + m) * d + 4 * n * row_pitch(m, device) + _beside(n, m, d, most_blocks(n), device)
    )


def _beside(n: int, m: int, d: int, blocks: int, device: torch.device) -> int:
    pitch = row_pitch(m, device)
    strip = max(STRIP_ROWS * pitch, min(n * pitch, CERTIFIED_STRIP[device.type]))
    features = 4 * d * (pitch + row_pitch(min(n, _strip_rows(m, device)), device))
    plan = _ENTRY_BYTES * n * min(m, MOST_ENTRIES)
    return features + 4 * 8 * strip + plan + 2 * 4 * blocks * m


def _strip_rows(m: int, device: torch.device) -> int:
    """Rows of a float32 strip while the copy is made: on a GPU as many whole tiles as a strip of
    the certificate holds."""
    if device.type != "cuda":
        return STRIP_ROWS
    return max(STRIP_ROWS, CERTIFIED_STRIP["cuda"] // row_pitch(m, device) // ROWS * ROWS)


class _Part(NamedTuple):
    """Rows of the copy: q, costs' minima, steps, and how far storing puts an entry off at most."""

    rows: slice
    q: Tensor
    low: Tensor
    step: Tensor
    error: Tensor


def _packed(cost: GroundCost, copy: Copy, held: Tensor | None = None) -> Iterator[_Part]:
    """Consecutive strips of the copy, whose q are rows of `held` or, without it, fresh."""
    if copy.held == torch.int16:
        for rows, q, low, step in (_by_kernel if cost.by_kernel else _by_product)(cost, held):
            step = step.double()
            yield _Part(rows, q, low.double(), step, _HALF_STEP * step)
        return
    single = copy.computed == torch.float32
    height = _strip_rows(cost.shape[1], cost.x.x.device) if single else STRIP_ROWS
    for rows, part in cost.strips(height, dtype=copy.computed):
        low, high = torch.aminmax(part, dim=1)
        part -= low[:, None]
        q = part.float() if held is None else held[rows].copy_(part)
        low, error = low.double(), (high - low).double() * torch.finfo(torch.float32).eps
        yield _Part(rows, q, low, torch.ones_like(low), error)


def _by_kernel(cost: GroundCost, held: Tensor | None) -> Iterator[tuple]:
    """(rows, q, low, step) of strips in 16 bits, two kernels each."""
    height = _strip_rows(cost.shape[1], cost.x.x.device)
    for rows, costs in cost.strips(height, dtype=torch.float32):
        q = padded(costs.shape, costs, torch.int16) if held is None else held[rows]
        yield rows, q, *quantize_costs(costs, q)


def _by_product(cost: GroundCost, held: Tensor | None) -> Iterator[tuple]:
    """(rows, q, low, step) of strips in 16 bits, from a library's product."""
    squares = cost.x.squares.float()
    # Fresh pages cost more.
    buffer = padded((min(STRIP_ROWS, len(squares)), cost.shape[1]), squares, torch.float32)
    for start in range(0, len(squares), STRIP_ROWS):
        rows = slice(start, min(start + STRIP_ROWS, len(squares)))
        product = cost.products(rows.start, rows.stop, dtype=torch.float32, out=buffer)
        columns, which = cost.columns(rows.start, rows.stop, dtype=torch.float32)
        q = padded(product.shape, product, torch.int16) if held is None else held[rows]
        yield rows, q, *quantize(product, squares[rows], columns, which, q)
