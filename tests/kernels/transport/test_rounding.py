"""No bound that a pass with float32 sums gives is false: 400 problems of every difficulty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from triton_interpreter import interpreted, run_interpreted

from kernels.reference import entropic_transport
from kernels.transport import certificate
from kernels.transport.certificate import _bounds, _kernel_pass
from kernels.transport.cost import GroundCost
from kernels.transport.store import COARSE, StoredCost, store

FAR, WILD, NEAR = "a column out of reach", "wild shares", "nearly the optimum"
KINDS = (FAR, WILD, NEAR, NEAR)


@dataclass(frozen=True)
class Copied:
    """The copy as a cost of its own, so that only rounding is left for a bound to be wrong by."""

    costs: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        n, m = self.costs.shape
        return n, m

    def times(self, columns: Tensor) -> Tensor:
        return self.costs @ columns


def drawn(seed: int) -> tuple[StoredCost, float, float, Tensor, Tensor]:
    """A stored cost, eps, the value, a potential and shares."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 10, (), generator=generator))
    m = n if seed % 2 else int(torch.randint(2, 10, (), generator=generator))
    x, y = (torch.randn(size, 3, generator=generator) for size in (n, m))
    stored = store(GroundCost(x, y + seed % 5), copy=COARSE)
    assert stored.q is not None
    costs = stored.offset[:, None] + stored.step[:, None] * stored.q
    copied: Any = Copied(costs)
    eps = (0.05, 0.2, 1.0)[seed % 3] * float(costs.mean())
    _, g, value = entropic_transport(costs, eps, 500)
    kind = KINDS[seed % 4]
    size = 10.0 ** -float(torch.randint(1, 12, (), generator=generator))
    g = g + size * eps * torch.randn(m, generator=generator, dtype=torch.float64)
    if kind == FAR:
        g[0] -= 200 * eps
    plan = ((g - costs) / eps).softmax(1)
    retained = (n / m / plan.sum(0)).clamp(1e-30, 1.0)
    if kind == WILD:
        retained *= torch.rand(m, generator=generator, dtype=torch.float64)
    return replace(stored, cost=copied, slack=0.0), eps, value, g, retained


@pytest.mark.slow
def test_in_the_interpreter():
    run_interpreted(__file__)


def held(bounds: certificate.Certificate, stored: StoredCost, value: float) -> bool:
    copied: Any = stored.cost
    allowed = 1e-12 * max(float(copied.costs.mean()), abs(value))
    right = bounds.lower <= value + allowed and value <= bounds.upper + allowed
    n, m = stored.shape
    if n == m:
        exact = float(copied.costs[linear_sum_assignment(copied.costs.numpy())].mean())
        low, high = bounds.unregularised
        right = right and low <= exact + allowed and exact <= high + allowed
    return right


@interpreted
def test_interpreted_bounds_of_400_problems_hold_and_would_not_without_counting():
    widest, false = 0.0, 0
    for seed in range(400):
        stored, eps, value, g, retained = drawn(seed)
        sums = _kernel_pass(stored, g, eps, retained)
        assert sums.rounding > 0
        bounds = _bounds(stored, g, eps, retained, sums)
        assert held(bounds, stored, value), seed
        uncounted = _bounds(stored, g, eps, retained, replace(sums, rounding=0.0))
        false += not held(uncounted, stored, value)
        widened = (bounds.upper - bounds.lower) - (uncounted.upper - uncounted.lower)
        if KINDS[seed % 4] == NEAR:
            widest = max(widest, widened / value)
    assert false > 50, "the rounding does not show in these problems"
    assert widest < 2e-5
