"""The certificate's pass as a kernel, against the strips of PyTorch's operators, in float64."""

from __future__ import annotations

import pytest
import torch
from triton_interpreter import interpreted, run_interpreted

from kernels.transport import certificate, certified_pass
from kernels.transport.cost import GroundCost
from kernels.transport.store import COARSE, SINGLE, store


@pytest.mark.slow
def test_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("copy", [COARSE, SINGLE], ids=["int16", "float32"])
@pytest.mark.parametrize("shape", [(2, 2), (33, 70), (9, 1025), (70, 257)])
@pytest.mark.parametrize("strip_bytes", [1, 1 << 24])
def test_interpreted_pass_equals_strips(shape, copy, strip_bytes, monkeypatch):
    monkeypatch.setattr(certified_pass, "_STRIP_BYTES", strip_bytes)
    m = shape[1]
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(size, 8, generator=generator) for size in shape)
    cost = GroundCost(x, y + 0.3)
    stored, eps = store(cost, copy=copy), 0.05 * cost.mean
    g = cost.mean / 10 * torch.randn(m, dtype=torch.float64, generator=generator)
    g[-1] = 40 * cost.mean  # what is no row's must not overflow into the columns
    kept = 0.5 + torch.rand(m, dtype=torch.float64, generator=generator) / 2
    found = certificate._kernel_pass(stored, g, eps, kept)
    right = certificate._strips_pass(stored, g, eps, kept)
    for name in ("f", "hard_f", "kept", "columns", "hard_g"):
        torch.testing.assert_close(
            getattr(found, name), getattr(right, name), rtol=1e-12, atol=1e-12 * cost.mean
        )
    assert found.reduced == pytest.approx(right.reduced, rel=1e-11, abs=1e-12 * cost.mean)
