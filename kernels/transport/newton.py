"""Newton's method on the dual of entropic transport, for an eps so small that the plan is sparse.

Where eps is far below the costs' spread, Sinkhorn's iterations need a number of them that grows as
cost / eps: at eps of 1e-4 of the mean cost 2000 were not enough for 800 samples. The dual is
concave, though, and with the row potential f(g) that is exact for g it is a smooth function of the
column potential alone. With the plan's rows p_i (each of sum 1) and columns c = sum_i p_i / n,

    gradient  b - c          Hessian  -(diag(c) - P^T P / n) / eps

Of each row few entries matter, so that a Newton step is a sparse linear system, which conjugate
gradients solve without reading the costs. The step is halved until the dual rises; a ridge that
vanishes with the error keeps it bounded where the dual is flat. 20 to 40 steps of 2 passes each
bring the marginals to 1e-5, annealing from 0.005 of the mean cost included.

Sources: Brauer, Clason, Lorenz & Wirth 2017 (Newton's method for Sinkhorn's problem); Tang et al.
2024 (the sparse plan).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.transport.cost import GroundCost
from kernels.transport.store import CERTIFIED_STRIP, MOST_ENTRIES, StoredCost

_DROPPED = 1e-6  # of a row's mass: smaller entries are left out of the Hessian, and only there
_RIDGE = 1e-2  # of a column's mass, times the marginal error
_INEXACT = 0.1  # residual of the linear system, of what it was; or the marginal error, if less
_MOST_PRODUCTS = 2000
# Products between two looks at the residual, for which the host waits for a GPU.
_LOOK_EVERY = {"cpu": 1, "cuda": 8}
_ASCENT = 1e-4  # of what the slope promises: the least rise of the dual that is a step
_LEAST_STEP = 2.0**-20


@dataclass(frozen=True)
class Point:
    """A column potential g [m], the row potential f [n] that is exact for it, the columns' mass
    [m], all float64, and the plan of rows that sum to about 1, sparse [n, m]; None if it is not."""

    g: Tensor
    f: Tensor
    columns: Tensor
    plan: Tensor | None

    @property
    def dual(self) -> float:
        return self._numbers[0]

    @property
    def error(self) -> float:
        """sum |c - b|"""
        return self._numbers[1]

    @cached_property
    def _numbers(self) -> list[float]:
        dual = self.f.mean() + self.g.mean()
        return torch.stack([dual, (self.columns - 1 / len(self.g)).abs().sum()]).tolist()


def newton_point(costs: GroundCost | StoredCost, g: Tensor, eps: float) -> Point:
    """One pass over the costs in float64 for a column potential g [m] in sorted order."""
    n, m = costs.shape
    f, columns = g.new_empty(n), torch.zeros_like(g)
    indices, entries, room = [], [], MOST_ENTRIES * n
    for rows, part in costs.strips(max(1, CERTIFIED_STRIP[g.device.type] // m)):
        part -= g
        low = part.amin(1)
        plan = part.sub_(low[:, None]).div_(-eps).exp_()
        total = plan.sum(1)
        f[rows] = low - eps * (total / m).log()
        plan /= total[:, None]
        columns += plan.sum(0) / n
        if room >= 0:
            used = (plan > _DROPPED).nonzero()
            room -= len(used)
            entries.append(plan[used[:, 0], used[:, 1]])
            used[:, 0] += rows.start
            indices.append(used.T)
    if room < 0:
        return Point(g, f, columns, None)
    plan = torch.sparse_coo_tensor(
        torch.cat(indices, 1), torch.cat(entries), (n, m), is_coalesced=True, check_invariants=False
    )
    return Point(g, f, columns, plan)


def newton_step(point: Point, eps: float) -> Tensor:
    """The direction [m] in which the dual rises to its largest value, if it were quadratic."""
    plan, error = point.plan, point.error
    assert plan is not None, "the plan is not sparse"
    n, m = plan.shape
    transposed = plan.t().coalesce()
    row_sums = plan @ torch.ones_like(point.g)
    diagonal = transposed @ torch.ones_like(point.f) / n + _RIDGE * min(1.0, error) / m

    def product(v: Tensor) -> Tensor:
        return diagonal * v - transposed @ (plan @ v / row_sums) / n

    gradient = 1 / m - point.columns
    return eps * _conjugate_gradients(product, gradient, diagonal, min(_INEXACT, error))


def ascend(
    costs: GroundCost | StoredCost, point: Point, step: Tensor, eps: float, passes: int
) -> tuple[Point | None, int]:
    """The first point along the step, halved again and again, where the dual rises enough, None
    where none is left; and how many of the passes allowed were made."""
    slope = float((1 / len(step) - point.columns) @ step)
    size, made = 1.0, 0
    while made < passes and size >= _LEAST_STEP:
        following = newton_point(costs, point.g + size * step, eps)
        made += 1
        if following.dual >= point.dual + _ASCENT * size * slope:
            return following, made
        size /= 2
    return None, made


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor, tolerance: float
) -> Tensor:
    """x with product(x) = right, preconditioned by the diagonal, to a relative residual.

    Numbers stay on the device; the host looks at the residual every `_LOOK_EVERY` products. Those
    beyond the tolerance only improve x, and a residual of 0 stays 0.
    """
    x, residual = torch.zeros_like(right), right
    scaled = residual / diagonal
    direction, size = scaled, residual @ scaled
    enough, least = tolerance**2 * size, torch.finfo(right.dtype).tiny  # 0 / least is 0
    look_every = _LOOK_EVERY[right.device.type]
    for number in range(_MOST_PRODUCTS):
        if number % look_every == 0 and not size > enough:
            break
        image = product(direction)
        length = size / (direction @ image + least)
        x = torch.addcmul(x, length, direction)
        residual = torch.addcmul(residual, length, image, value=-1)
        scaled = residual / diagonal
        before, size = size, residual @ scaled
        direction = torch.addcmul(scaled, size / (before + least), direction)
    return x
