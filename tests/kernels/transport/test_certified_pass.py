"""The certificate's pass as a kernel, strips of operators and compiled loop, against the twin."""

from dataclasses import replace

import pytest
import torch

from helpers.children import DEVICE, KERNELS, everywhere
from helpers.twins import apart
from kernels import reference
from kernels.transport import certificate, certified_pass
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


def assert_equals_the_twin(sums, stored, g, eps, retained):
    """To float64's rounding."""
    twin = reference.certified_pass(stored.q, stored.offset, stored.step, g, retained, eps)
    f, hard_f, lost, moved, columns, hard_g = twin
    share, unit = 1 / stored.q.numel(), stored.cost.mean
    right = f, hard_f, lost * share, columns * share, hard_g
    for name, expected in zip(NAMES, right, strict=True):
        torch.testing.assert_close(getattr(sums, name), expected, rtol=1e-11, atol=1e-11 * unit)
    assert sums.moved == pytest.approx(float(moved.sum()) * share, rel=1e-10, abs=1e-11 * unit)


@everywhere
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 2), (33, 70), (9, 1025), (70, 257)])
def test_each_way_equals_the_twin(shape, dtype, monkeypatch):
    stored, *inputs = case(shape, dtype)
    if not KERNELS:
        assert_equals_the_twin(certificate._strips_pass(stored, *inputs), stored, *inputs)
        pytest.importorskip("numba")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert_equals_the_twin(certificate._compiled_pass(stored, *inputs), stored, *inputs)
        return
    for added_rows in (8, 1024):
        monkeypatch.setattr(certified_pass, "_ADDED_ROWS", added_rows)
        for each in (stored, replace(stored, q=apart(stored.q, 9))):
            assert_equals_the_twin(certificate._kernel_pass(each, *inputs), each, *inputs)
