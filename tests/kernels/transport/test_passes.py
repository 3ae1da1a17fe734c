"""The certificate's pass as strips of operators and as a compiled loop, against the twin."""

import pytest
import torch

from helpers.children import DEVICE
from kernels.transport import certificate
from kernels.transport.cost import GroundCost
from kernels.transport.store import store

NAMES = ("f", "hard_f", "lost", "columns", "hard_g")


def case(shape, dtype):
    m = shape[1]
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(size, 8, generator=generator).to(DEVICE) for size in shape)
    cost = GroundCost(x, y + 0.3)
    g = cost.mean / 10 * torch.randn(m, dtype=torch.float64, generator=generator)
    g[-1] = 40 * cost.mean  # what is no row's must not overflow into the columns
    retained = 0.5 + torch.rand(m, dtype=torch.float64, generator=generator) / 2
    return store(cost, dtype), g.to(DEVICE), 0.05 * cost.mean, retained.to(DEVICE)


def twin(stored, g, eps, retained):
    """The sums from whole float64 matrices."""
    cost = stored.offset[:, None] + stored.step[:, None] * stored.q
    low = (cost - g).amin(1)
    over = cost - g - low[:, None]
    plan = (-over / eps).exp()
    total, plan = plan.mean(1), plan / plan.sum(1, keepdim=True) / len(cost)
    moved = float(((plan * over) @ retained).sum())
    hard_g = (cost - low[:, None]).amin(0)
    return (low - eps * total.log(), low, plan @ (1 - retained), plan.sum(0), hard_g), moved


def assert_equals_the_twin(sums, stored, g, eps, retained):
    """To float64's rounding."""
    right, moved = twin(stored, g, eps, retained)
    unit = stored.cost.mean
    for name, expected in zip(NAMES, right, strict=True):
        torch.testing.assert_close(getattr(sums, name), expected, rtol=1e-11, atol=1e-11 * unit)
    assert sums.moved == pytest.approx(moved, rel=1e-10, abs=1e-11 * unit)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 2), (33, 70), (9, 1025), (70, 257)])
def test_strips_and_the_compiled_loop_equal_the_twin(shape, dtype, monkeypatch):
    stored, *inputs = case(shape, dtype)
    assert_equals_the_twin(certificate._strips_pass(stored, *inputs), stored, *inputs)
    if DEVICE.type == "cpu":
        pytest.importorskip("numba")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert_equals_the_twin(certificate._compiled_pass(stored, *inputs), stored, *inputs)
