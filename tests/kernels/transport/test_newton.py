"""Newton's method for small eps against autograd, dense plans and exact transport."""

from __future__ import annotations

import math

import pytest
import torch
from clouds import dense, problem
from launches import counted

from engine.transport.problems import Labelled, Options
from engine.transport.solve import matrix
from kernels import reference
from kernels.transport import alternating, newton, sinkhorn
from kernels.transport.newton import ascend, newton_point, newton_step
from kernels.transport.sinkhorn import transport, unregularised
from kernels.transport.store import beside_the_copy


def mixture(n: int, d: int, seed: int, shift: float = 0.0, width: float = 1.0) -> Labelled:
    """Five Gaussians that are the same for every seed, costs in the hundreds."""
    centres = 3 * torch.randn(5, d, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 5
    return Labelled(
        centres[labels] + width * torch.randn(n, d, generator=generator) + shift, labels
    )


def digits(n: int, seed: int) -> Labelled:
    """Grey images of 64 pixels from 0 to 16, mostly empty, costs in the thousands."""
    patterns = torch.rand(5, 64, generator=torch.Generator().manual_seed(9)) > 0.6
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 5
    noise = 5 * torch.randn(n, 64, generator=generator)
    return Labelled((12.0 * patterns[labels] + noise).clamp(0, 16).round(), labels)


SETS = {
    "near": {"a": mixture(200, 16, 1), "b": mixture(190, 16, 2, 0.5, 1.2)},
    "far": {"a": mixture(1100, 32, 1, 0.0, 2.0), "b": mixture(1100, 32, 2, 1.0, 2.0)},
    "digits": {"a": digits(1100, 1), "b": digits(1000, 2)},
}


@pytest.mark.parametrize("name", SETS)
def test_the_default_of_the_reference_library_gives_certified_numbers(name):
    """eps of 0.1 absolute, which is 1e-4 to 2e-5 of the mean cost: nearly exact transport."""
    pytest.importorskip("ot")
    small = Options(eps=0.1, relative=False, half=True)
    debiased = matrix(SETS[name], 5, small)
    exact = matrix(SETS[name], 5, Options(exact=True, half=True)).values[0, 1]
    n = max(len(labelled.labels) for labelled in SETS[name].values())
    assert debiased.gaps[0, 1] <= small.tolerance
    # A plan's entropy is between 0 and log n, and each term has one.
    assert debiased.values[0, 1] == pytest.approx(exact, abs=0.1 * math.log(n) + 1e-4 * exact)
    biased = matrix(SETS[name], 5, Options(eps=0.1, relative=False, half=True, debias=False))
    assert -1e-4 * exact <= biased.values[0, 1] - exact <= 0.1 * math.log(n) + 1e-4 * exact


def test_values_equal_the_log_domain_loop():
    cost = problem(40, 30)
    eps = 0.003 * cost.mean
    _, _, expected = reference.entropic_transport(dense(cost), eps, 30_000)
    solved = transport(cost, eps=eps, tolerance=1e-6)
    assert solved.converged and solved.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("share", [1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("sizes", [(150, 120), (120, 150), (120, 120)])
def test_plans_have_the_right_marginals_and_bounds_hold_exact_transport(share, sizes):
    ot = pytest.importorskip("ot")
    cost = problem(*sizes)
    eps = share * cost.mean
    solved = transport(cost, eps=eps)
    assert solved.converged and solved.iterations < 400
    f, g, (n, m) = solved.f[cost.x.order], solved.g[cost.y.order], sizes
    plan = ((f[:, None] + g - dense(cost)) / eps).exp() / (n * m)
    # The potentials are exact for a copy in float32, off by 6e-8 of the costs' range.
    assert (plan.sum(1) - 1 / n).abs().sum() <= 1e-2
    assert (plan.sum(0) - 1 / m).abs().sum() <= 1e-2
    exact = ot.emd2([], [], dense(cost).numpy())
    lower, upper = solved.unregularised
    assert lower <= exact * (1 + 1e-12) and exact <= upper * (1 + 1e-12)
    assert -1e-4 * exact <= solved.value - exact <= eps * math.log(max(sizes)) + 1e-4 * exact


def test_costs_that_are_not_held_give_the_same_value():
    cost = problem(300, 200)
    eps = 1e-4 * cost.mean
    streamed = transport(cost, eps=eps, memory=beside_the_copy(cost))
    assert streamed.value == pytest.approx(transport(cost, eps=eps).value, rel=1e-4)


def test_a_plan_that_is_not_sparse_is_left_to_alternation(monkeypatch):
    cost = problem(100, 90)
    eps = 0.003 * cost.mean
    expected = transport(cost, eps=eps)
    monkeypatch.setattr(newton, "MOST_ENTRIES", 1)
    monkeypatch.setattr(alternating, "newton_step", None)
    solved = transport(cost, eps=eps)
    assert solved.converged and solved.value == pytest.approx(expected.value, rel=1e-4)


def test_the_limit_of_passes_holds():
    cost = problem(100, 90)
    solved = transport(cost, eps=1e-4 * cost.mean, max_iterations=12)
    assert not solved.converged and math.isnan(solved.value)
    assert solved.iterations <= 12 + 6 + sinkhorn._PASSES  # a pass for each stage
    assert solved.lower < solved.upper


def test_brackets_are_narrow():
    ot = pytest.importorskip("ot")
    cost = problem(150, 120)
    exact = ot.emd2([], [], dense(cost).numpy())
    solved = unregularised(cost, tolerance=1e-5)
    assert solved.converged and solved.lower <= exact * (1 + 1e-12)
    assert exact <= solved.upper * (1 + 1e-12)


def test_the_step_is_that_of_the_dense_hessian(monkeypatch):
    """Of the dual by autograd, with the same ridge, and no entry dropped."""
    cost = problem(20, 15)
    eps, costs = 0.05 * cost.mean, dense(cost)
    monkeypatch.setattr(newton, "_DROPPED", 0.0)
    monkeypatch.setattr(newton, "_INEXACT", 1e-9)

    def dual(g):
        f = -eps * (torch.logsumexp((g - costs) / eps, 1) - math.log(15))
        return f.mean() + g.mean()

    g = torch.randn(15, generator=torch.Generator().manual_seed(0)).double() * eps
    point = newton_point(cost, g, eps)
    assert point.dual == pytest.approx(float(dual(g)), rel=1e-12)
    gradient = torch.autograd.functional.jacobian(dual, g)
    torch.testing.assert_close(1 / 15 - point.columns, gradient)
    ridge = newton._RIDGE * min(1.0, point.error) / 15
    hessian = eps * torch.autograd.functional.hessian(dual, g) - ridge * torch.eye(15).double()
    expected = eps * torch.linalg.solve(-hessian, gradient)
    torch.testing.assert_close(newton_step(point, eps), expected, rtol=1e-6, atol=1e-6 * eps)


def test_a_step_that_goes_down_is_none():
    cost = problem(20, 15)
    eps = 0.01 * cost.mean
    point = newton_point(cost, torch.zeros(15).double(), eps)
    step = newton_step(point, eps)
    uphill, passes = ascend(cost, point, step, eps, 30)
    assert uphill is not None and uphill.dual > point.dual and passes <= 30
    assert ascend(cost, point, -step, eps, 30) == (None, 21)


@pytest.mark.parametrize(("look_every", "waits"), [(1, 8), (4, 3), (8, 2)])
def test_conjugate_gradients_wait_as_seldom_as_they_look(monkeypatch, look_every, waits):
    """Seven eigenvalues are seven products; what is multiplied beyond them changes nothing."""
    monkeypatch.setitem(newton._LOOK_EVERY, "cpu", look_every)
    matrix = torch.diag(torch.arange(1.0, 8.0, dtype=torch.float64).repeat(5))
    right = torch.linspace(-1, 1, 35, dtype=torch.float64)
    with counted() as counts:
        x = newton._conjugate_gradients(lambda v: matrix @ v, right, torch.ones(35).double(), 1e-9)
    assert torch.allclose(x, torch.linalg.solve(matrix, right), rtol=1e-9, atol=0)
    assert counts.waits.total() == waits, counts.waits


def test_conjugate_gradients_stay_finite_beyond_the_solution(monkeypatch):
    monkeypatch.setitem(newton._LOOK_EVERY, "cpu", 8)
    right, ones = torch.tensor([1.0, 2.0, 0.0]).double(), torch.ones(3).double()
    assert torch.equal(newton._conjugate_gradients(lambda v: v, right, ones, 0.0), right)
    assert not newton._conjugate_gradients(lambda v: v, 0 * right, ones, 0.5).any()


def test_a_product_of_the_linear_system_takes_ten_other_launches(monkeypatch):
    monkeypatch.setitem(newton._LOOK_EVERY, "cpu", 8)
    right, ones = torch.linspace(-1, 1, 35).double(), torch.ones(35).double()
    matrix = torch.diag(torch.arange(1.0, 36.0, dtype=torch.float64))
    totals = []
    for products in (3, 4):
        monkeypatch.setattr(newton, "_MOST_PRODUCTS", products)
        with counted() as counts:
            newton._conjugate_gradients(lambda v: matrix @ v, right, ones, 1e-9)
        totals.append(counts.total)
    assert totals[1] - totals[0] == 1 + 10
