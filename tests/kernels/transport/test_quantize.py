"""16-bit costs are within half a step of float64."""

from __future__ import annotations

import pytest
import torch
from triton_interpreter import interpreted
from twins import apart

from kernels.transport.quantize import _quantize, quantize

SHAPES = pytest.mark.parametrize("shape", [(2, 1), (3, 5), (17, 2049), (4, 4096)])


def case(shape):
    cost = 9 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    return cost, torch.empty(shape, dtype=torch.int16)


def check(cost, q, low, step):
    assert (q.dtype, low.dtype, step.dtype) == (torch.int16, torch.float64, torch.float64)
    restored = low[:, None] + step[:, None] * (q.double() + 32768)
    assert ((restored - cost).abs() <= 0.5 * step[:, None] + 1e-14 * cost.amax()).all()
    assert torch.equal(low, cost.amin(1))


@SHAPES
def test_on_the_cpu(shape):
    cost, q = case(shape)
    check(cost, q, *quantize(cost.clone(), q))


@interpreted
@SHAPES
def test_interpreted_kernel(shape):
    cost, q = case(shape)
    check(cost, q, *_quantize(cost, q))
    wide = torch.full((shape[0], shape[1] + 64), 77, dtype=torch.int16)
    rows, beside = wide[:, : shape[1]], wide[:, shape[1] :]
    check(cost, rows, *_quantize(apart(cost, torch.nan), rows))
    assert torch.equal(rows, q) and (beside == 77).all()
