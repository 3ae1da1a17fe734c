"""Brackets of transport values against exact solvers and any plan; their pass against the twin."""

import math

import pytest
import torch

from helpers.children import DEVICE
from helpers.clouds import CLASSES, dense, entropic_transport, labelled, problem
from kernels.transport import certificate
from kernels.transport.certificate import certify, relative_gap
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import transport
from kernels.transport.store import store

NAMES = ("f", "hard_f", "lost", "columns", "hard_g")


def test_bounds_that_are_none_have_no_gap_to_accept():
    assert relative_gap(0.0, 0.0) == 0 and relative_gap(-1.0, 2.0) == 1
    assert relative_gap(1.0, 1.25) == pytest.approx(0.2)
    for lower, upper in ((1.0, math.nan), (math.nan, 1.0), (-3.0, -1.0), (1.0, math.inf)):
        assert not relative_gap(lower, upper) <= 1
    assert relative_gap(1.0, math.nan) > 1


@pytest.mark.parametrize("dtype", [None, torch.int16, torch.float32])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e9])
def test_bounds_hold_for_any_potential(scale, dtype):
    """Of costs in float64, and of their copies; the loop's value is exact to some 1e-15."""
    (x, labels_x), (y, labels_y) = labelled(40, 0), labelled(30, 1)
    generator = torch.Generator().manual_seed(1)
    table = 5 * scale**2 * torch.rand(CLASSES, CLASSES, generator=generator).double()
    terms = {"labels_x": labels_x, "labels_y": labels_y, "table": table}
    cost = GroundCost(scale * x.double(), scale * y.double(), **terms)
    eps = 0.1 * cost.mean
    _, best, exact = entropic_transport(dense(cost), eps, 1000)
    assert abs(transport(cost, eps=eps, tolerance=1e-9).value - exact) <= 1e-8 * exact
    costs = cost if dtype is None else store(cost, dtype)
    for size in (0.0, 1e-6, 1e-3, 1.0, 1e4):
        g = best + size * eps * torch.randn(30, generator=generator).double()
        for retained in (torch.ones(30), torch.rand(30, generator=generator)):
            bounds = certify(costs, g, eps, retained.double())
            assert bounds.lower - 1e-12 * exact <= exact <= bounds.upper + 1e-12 * exact
            assert bounds.unregularised[0] <= bounds.unregularised[1]


@pytest.mark.parametrize("scale", [1e-21, 1e20])
def test_costs_that_float32_cannot_hold_are_refused(scale):
    x = scale * labelled(40, 0)[0].double()
    with pytest.raises(ValueError, match=r"outside \[1e-20, 1e\+20\], where float32"):
        GroundCost(x, x + scale)


@pytest.mark.parametrize("compiled", [False, True])
def test_bounds_hold_where_rounding_is_multiplied_by_a_huge_eps(compiled, monkeypatch):
    if compiled:
        pytest.importorskip("numba")
        monkeypatch.setattr(certificate, "_COMPILE_FROM", 0)
    cost = problem(300, 280)
    stored = store(cost, torch.float32)
    for size in (1e6, 1e10, 1e14):  # the value is the mean cost less its variance / (2 eps)
        zeros, ones = torch.zeros(280).double(), torch.ones(280).double()
        bounds = certify(stored, zeros, size * cost.mean, ones)
        assert bounds.lower <= cost.mean and bounds.upper >= (1 - 1 / size) * cost.mean
    with pytest.raises(ValueError, match="more than a million times the mean cost"):
        transport(cost, eps=1e7 * cost.mean)


@pytest.mark.parametrize("d", [5, 200])
def test_slack_covers_what_a_copy_is_off_for_any_plan(d):
    optimize = pytest.importorskip("scipy.optimize")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 60, d, generator=generator) + 3
    labels, table = torch.arange(60) % 3, 10 * torch.rand(3, 3, generator=generator)
    cost = GroundCost(x, y * 2, labels_x=labels, labels_y=labels, table=table)
    for dtype, most in ((torch.int16, 3e-5), (torch.float32, 4e-7)):
        stored = store(cost, dtype)
        assert stored.q is not None
        off = stored.offset[:, None] + stored.step[:, None] * stored.q - dense(cost)
        worst = []
        for signed in (off, -off):  # permutations are the extreme plans
            rows, columns = optimize.linear_sum_assignment(-signed.numpy())
            worst.append(float(signed[rows, columns].mean()))
        assert max(worst) <= stored.slack
        assert stored.slack <= most * cost.mean


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
