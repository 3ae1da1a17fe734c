"""16-bit costs are within half a step of float64."""

import pytest
import torch

from helpers.children import DEVICE, INTERPRETING, everywhere
from helpers.twins import apart
from kernels.transport import quantize


@everywhere
@pytest.mark.parametrize("shape", [(2, 1), (3, 5), (17, 2049), (4, 4096)])
@pytest.mark.parametrize("place", [torch.clone, lambda cost: apart(cost, torch.nan)])
def test_costs_in_16_bits(shape, place):
    cost = 9 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    wide = torch.full((shape[0], shape[1] + 64), 77, dtype=torch.int16, device=DEVICE)
    q, beside = wide[:, : shape[1]], wide[:, shape[1] :]
    run = quantize._quantize if INTERPRETING else quantize.quantize
    low, step = (t.cpu() for t in run(place(cost.to(DEVICE)), q))
    assert (low.dtype, step.dtype) == (torch.float64, torch.float64)
    restored = low[:, None] + step[:, None] * (q.cpu().double() + 32768)
    assert ((restored - cost).abs() <= 0.5 * step[:, None] + 1e-14 * cost.amax()).all()
    assert torch.equal(low, cost.amin(1)) and (beside == 77).all()
