"""Brackets of transport values against exact solvers, forty digits and any plan."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from clouds import CLASSES, dense, labelled, problem

from kernels import reference
from kernels.transport import certificate
from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.certificate import certify, relative_gap
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import transport, unregularised
from kernels.transport.store import store

mpmath = pytest.importorskip("mpmath")
optimize = pytest.importorskip("scipy.optimize")


def test_the_bracket_of_a_set_and_itself_is_zero_to_a_millionth_of_the_mean_cost():
    x, labels = labelled(120, 0)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    table = bures_squared(class_gaussians(x, labels, CLASSES))
    terms = {"labels_x": labels, "labels_y": labels[order], "table": table}
    # Samples that lie apart: only the rounding of the copy is left, and more than is allowed.
    apart = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    for cost, tolerance, most in (
        (GroundCost(x, x[order], **terms), 1e-3, 1e-6),
        (GroundCost(apart, apart), 1e-4, 1e-7),
    ):
        home = unregularised(cost, tolerance=tolerance)
        assert home.converged and home.gap <= tolerance
        assert 0 <= home.lower <= home.value <= home.upper <= most * cost.mean
    shifted = unregularised(GroundCost(x, x[order] + 1.0, **terms))
    assert shifted.gap == relative_gap(shifted.lower, shifted.upper) <= 1e-3


def test_bounds_that_are_none_have_no_gap_to_accept():
    assert relative_gap(0.0, 0.0) == 0 and relative_gap(-1.0, 2.0) == 1
    assert relative_gap(1.0, 1.25) == pytest.approx(0.2)
    assert relative_gap(-1.0, -1.0, 1.0) == math.inf
    for lower, upper in ((1.0, math.nan), (math.nan, 1.0), (-3.0, -1.0), (1.0, math.inf)):
        assert not relative_gap(lower, upper) <= 1
    assert relative_gap(1.0, math.nan) > 1


def test_bounds_hold_for_any_potential():
    cost = problem(60, 50)
    eps = 0.1 * cost.mean
    _, _, exact = reference.entropic_transport(dense(cost), eps, 1000)
    for seed in range(5):
        g = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double() * 10**seed
        bounds = certify(cost, g, eps, torch.rand(50).double())
        assert bounds.lower <= exact <= bounds.upper
        assert bounds.unregularised[0] <= bounds.unregularised[1]


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


def exactly(cost: GroundCost, eps: float) -> float:
    """The entropic value by Sinkhorn's iterations in 40 digits, on features taken as exact."""
    mpf, exp, log = (np.frompyfunc(f, 1, 1) for f in (mpmath.mpf, mpmath.exp, mpmath.log))
    x, y, table = (mpf(t.numpy()) for t in (cost.x.x, cost.y.x, cost.table))
    costs = ((x[:, None] - y) ** 2).sum(-1) + table[cost.x.labels.numpy()][:, cost.y.labels.numpy()]
    g = mpf(np.zeros(len(y)))
    for _ in range(60):
        f = -eps * log(exp((g - costs) / eps).mean(1))
        g = -eps * log(exp((f[:, None] - costs) / eps).mean(0))
    return f.mean() + g.mean()


@pytest.mark.parametrize("scale", [1e-21, 1e-10, 1e9, 1e20])
def test_costs_that_float32_cannot_hold_are_refused_and_others_certified(scale):
    x, y = (labelled(size, seed)[0].double() for seed, size in enumerate((40, 30)))
    if not 1e-20 < scale < 1e20:
        with pytest.raises(ValueError, match=r"outside \[1e-20, 1e\+20\], where float32"):
            GroundCost(scale * x, scale * y)
        return
    cost = GroundCost(scale * x, scale * y)
    eps = 0.1 * cost.mean
    exact = reference.entropic_transport(dense(cost), eps, 1000)[2]
    for dtype in (torch.int16, torch.float32):
        stored = store(cost, dtype)
        assert (stored.slack / cost.mean) < 1e-4
        g = transport(cost, eps=eps).g[cost.y.order]
        bounds = certify(stored, g, eps, torch.ones(30).double())
        assert bounds.lower <= exact <= bounds.upper
    assert transport(cost, eps=eps).value == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.int16, torch.float32])
def test_bounds_hold_in_forty_digits(dtype):
    cost = problem(7, 6)
    eps = 0.2 * cost.mean
    with mpmath.workdps(40):
        exact = exactly(cost, eps)
    solved = transport(cost, eps=eps, tolerance=1e-9)
    assert abs(solved.value - exact) <= 1e-8 * exact
    costs = cost if dtype is None else store(cost, dtype)
    for size in (0.0, 1e-6, 1e-3):
        noise = torch.randn(6, generator=torch.Generator().manual_seed(1)).double()
        g = solved.g[cost.y.order] + size * eps * noise
        bounds = certify(costs, g, eps, torch.ones(6).double())
        assert bounds.lower - 1e-12 * exact <= exact <= bounds.upper + 1e-12 * exact
    assert dtype is None or bounds.lower < exact < bounds.upper


@pytest.mark.parametrize("d", [5, 200])
def test_slack_covers_what_a_copy_is_off_for_any_plan(d):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 60, d, generator=generator) + 3
    labels, table = torch.arange(60) % 3, 10 * torch.rand(3, 3, generator=generator)
    cost = GroundCost(x, y * 2, labels_x=labels, labels_y=labels, table=table, lam_x=0.7)
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
