"""The ground cost of OTDD, never held in full precision, and its 16-bit copy for iterating.

    C_ij = lam_x ||x_i - y_j||^2 + lam_y T[label x_i, label y_j]

Sinkhorn's iterations read the whole matrix again and again, so what they read is stored: 16-bit
fixed point with an offset and a step a row. Unlike a stored kernel exp(-C / eps) it serves every
eps, cannot underflow, and is off by at most half a step everywhere (about 1e-5 of the mean cost),
which also bounds the error of the optimal value. Where eps is so small that even this shows, the
copy is float32, rounded once from float64. Exact strips are computed again where something is
certified. Samples are sorted by class, so that a strip needs few rows of T.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.bures import check_features

STRIP_ROWS = 256
_STEPS = 65535


@dataclass(frozen=True)
class Cloud:
    """Samples sorted by class: order int64 [n] (into the caller's), x float64 [n, d], labels."""

    order: Tensor
    x: Tensor
    squares: Tensor
    labels: Tensor

    def unsorted(self, values: Tensor) -> Tensor:
        """Values per sample in the caller's order."""
        return torch.empty_like(values).index_copy_(0, self.order, values)


class GroundCost:
    """The cost between every sample of two labelled sets, in strips of rows.

    x [n, d] and y [m, d]: finite features of any floating dtype, n and m at least 2. labels_x,
    labels_y: int64 [n], [m], numbering the rows and columns of `table` [Kx, Ky] (finite, not
    negative), whose entries are squared label distances; without labels the cost is between
    features alone. lam_x, lam_y: not negative, not both zero.

    Raises ValueError, naming the argument and the first wrong sample, for everything else, and when
    all costs are zero, since no scale for eps exists then.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        labels_x: Tensor | None = None,
        labels_y: Tensor | None = None,
        table: Tensor | None = None,
        lam_x: float = 1.0,
        lam_y: float = 1.0,
    ) -> None:
        if (table is None) != (labels_x is None) or (table is None) != (labels_y is None):
            raise ValueError("labels_x, labels_y and table go together: give all three, or none")
        rows, columns = (None, None) if table is None else table.shape
        for name, features, labels, classes in (
            ("x", x, labels_x, rows),
            ("y", y, labels_y, columns),
        ):
            check_features(name, features, labels, classes)
            if len(features) < 2:
                raise ValueError(f"{name} has one sample; a distance needs at least two")
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"x has {x.shape[1]} dimensions, but y has {y.shape[1]}; take the features of both "
                "sets from the same model"
            )
        if table is not None and not (table.isfinite().all() and (table >= 0).all()):
            raise ValueError("table of label distances holds NaN, infinity or negative numbers")
        if not (0 <= lam_x < float("inf") and 0 <= lam_y < float("inf")):
            raise ValueError(f"lam_x and lam_y must be finite, not negative: {lam_x}, {lam_y}")
        centre = x.double().mean(0)  # distances do not change, and rounding shrinks
        self.x = _cloud(x, labels_x, centre)
        self.y = _cloud(y, labels_y, centre)
        self.table = None if table is None else lam_y * table.double()
        self.lam_x = lam_x
        self.lam_y = lam_y
        self.mean = self._mean()
        if not self.mean > 0:
            raise ValueError("all costs are zero: the features are one point, or lam_x = lam_y = 0")

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x.x), len(self.y.x)

    def rows(self, start: int, stop: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Costs [stop - start, m] of some rows, computed in `dtype`; not negative."""
        x, y = self.x.x[start:stop].to(dtype), self._columns(dtype)
        own = self.lam_x * self.x.squares[start:stop].to(dtype)
        other = self.lam_x * self.y.squares.to(dtype)
        cost = torch.addmm(other, x, y.T, alpha=-2 * self.lam_x)
        cost += own[:, None]
        if self.table is not None:
            classes, inverse = self.x.labels[start:stop].unique_consecutive(return_inverse=True)
            expanded = self.table[classes].to(dtype)[:, self.y.labels]
            if len(classes) == 1:
                cost += expanded
            else:
                cost += expanded[inverse]
        return cost.clamp_(min=0.0)

    def strips(self, rows: int, *, dtype: torch.dtype = torch.float64) -> Iterator[tuple]:
        """(slice, costs) of consecutive rows."""
        for start in range(0, self.shape[0], rows):
            stop = min(start + rows, self.shape[0])
            yield slice(start, stop), self.rows(start, stop, dtype=dtype)

    def _columns(self, dtype: torch.dtype) -> Tensor:
        if dtype == torch.float64:
            return self.y.x
        if not hasattr(self, "_y_single"):
            self._y_single = self.y.x.to(dtype)
        return self._y_single

    def _mean(self) -> float:
        """Mean cost, in O(n + m)."""
        mean = self.x.squares.mean() + self.y.squares.mean()
        mean -= 2 * self.x.x.mean(0) @ self.y.x.mean(0)
        mean *= self.lam_x
        if self.table is not None:
            shares = [
                torch.bincount(cloud.labels, minlength=size).double() / len(cloud.labels)
                for cloud, size in ((self.x, len(self.table)), (self.y, self.table.shape[1]))
            ]
            mean += shares[0] @ self.table @ shares[1]
        return float(mean)


@dataclass(frozen=True)
class StoredCost:
    """Costs as offset[i] + step[i] * q[i, j]; q [n, m], or None to compute it at every reading.

    q: int16 from -32768, or float32 where `fine` (steps of 1). offset, step, row_minimum: float64
    [n].
    """

    cost: GroundCost
    fine: bool
    q: Tensor | None
    offset: Tensor
    step: Tensor
    row_minimum: Tensor

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, q of these rows): all at once where q is held."""
        if self.q is not None:
            yield slice(0, len(self.q)), self.q
            return
        for rows, q, _, _ in _packed(self.cost, self.fine):
            yield rows, q


def store(cost: GroundCost, *, fine: bool = False, memory: int | None = None) -> StoredCost:
    """The copy of a cost matrix to iterate on; not held if it is too large for the memory.

    memory: bytes that may be taken (default: 80% of what is free on the device). Raises ValueError
    when not even strips fit.
    """
    n, m = cost.shape
    device = cost.x.x.device
    allowed = int(0.8 * free_memory(device)) if memory is None else memory
    strips = 4 * 8 * STRIP_ROWS * m + 4 * m * cost.x.x.shape[1]
    if strips > allowed:
        raise ValueError(
            f"strips of the {n} x {m} cost matrix take {strips / 1e9:.3g} GB, but "
            f"{allowed / 1e9:.3g} GB may be used; free memory, or sample fewer images"
        )
    dtype = torch.float32 if fine else torch.int16
    q = None
    if strips + dtype.itemsize * n * m <= allowed:
        q = torch.empty(n, m, dtype=dtype, device=device)
    low, step = (torch.empty(n, dtype=torch.float64, device=device) for _ in range(2))
    for rows, part, low[rows], step[rows] in _packed(cost, fine):
        if q is not None:
            q[rows] = part
    offset = low if fine else low + (_STEPS + 1) // 2 * step
    return StoredCost(cost, fine, q, offset, step, low)


def _packed(cost: GroundCost, fine: bool) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """(rows, q, minima, steps) of consecutive strips."""
    dtype = torch.float64 if fine else torch.float32
    for rows, part in cost.strips(STRIP_ROWS, dtype=dtype):
        low, high = torch.aminmax(part, dim=1)
        part -= low[:, None]
        if fine:
            yield rows, part.float(), low, torch.ones_like(low)
            continue
        step = ((high - low) / _STEPS).clamp_(min=torch.finfo(dtype).tiny)
        scaled = part.mul_(step.reciprocal()[:, None]).round_()
        yield rows, scaled.sub_((_STEPS + 1) // 2).to(torch.int16), low.double(), step.double()


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device now, within the limits of the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        found.append(max(0, int(limit.read_text()) - int(used.read_text())))
    return min(found)


def _cloud(x: Tensor, labels: Tensor | None, centre: Tensor) -> Cloud:
    if labels is None:
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    order = labels.argsort(stable=True)
    centred = x.double()[order] - centre
    return Cloud(order, centred, centred.square().sum(1), labels[order])
