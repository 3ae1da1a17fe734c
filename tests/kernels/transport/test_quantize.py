"""16-bit costs are within half a step of float64."""

from __future__ import annotations

import pytest
import torch
from triton_interpreter import interpreted, run_interpreted

from kernels.transport.quantize import _quantize, quantize

SHAPES = [(2, 1), (3, 5), (17, 2049), (4, 4096)]


def check(cost, q, low, step):
    assert (q.dtype, low.dtype, step.dtype) == (torch.int16, torch.float64, torch.float64)
    restored = low[:, None] + step[:, None] * (q.double() + 32768)
    assert ((restored - cost).abs() <= 0.5 * step[:, None] + 1e-14 * cost.amax()).all()
    assert torch.equal(low, cost.amin(1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_the_cpu(shape):
    cost = 9 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    q = torch.empty(shape, dtype=torch.int16)
    check(cost, q, *quantize(cost.clone(), q))


@pytest.mark.slow
def test_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted_kernel(shape):
    n, m = shape
    cost = 9 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    q = torch.empty(shape, dtype=torch.int16)
    check(cost, q, *_quantize(cost, q))
    apart = torch.full((n, m + 64), torch.nan).double()
    apart[:, :m] = cost
    wider = torch.full((n, m + 64), 77, dtype=torch.int16)
    check(cost, wider[:, :m], *_quantize(apart[:, :m], wider[:, :m]))
    assert torch.equal(wider[:, :m], q) and (wider[:, m:] == 77).all()
