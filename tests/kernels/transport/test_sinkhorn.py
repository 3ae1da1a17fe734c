"""Entropic transport against POT, closed forms, float64 log-domain loops and laws."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from clouds import CLASSES, D, dense, labelled, problem

from kernels import reference
from kernels.transport import certificate, sinkhorn, sweep
from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.certificate import relative_gap
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import debiased, transport, unregularised
from kernels.transport.store import beside_the_copy


@pytest.mark.parametrize("share", [0.5, 0.05, 0.01])
def test_values_equal_the_log_domain_loop_and_bounds_hold(share):
    cost = problem(150, 120)
    eps = share * cost.mean
    _, _, expected = reference.entropic_transport(dense(cost), eps, 3000)
    solution = transport(cost, eps=eps, tolerance=1e-4)
    assert solution.converged and solution.gap <= 1e-4
    assert solution.value == pytest.approx(expected, rel=1e-6)
    assert solution.lower <= expected * (1 + 1e-12) and expected <= solution.upper
    assert relative_gap(solution.lower, solution.upper) == solution.gap


@pytest.mark.parametrize("share", [0.5, 0.05, 0.02])
def test_against_pot(share):
    ot = pytest.importorskip("ot")
    cost = problem(500, 400)
    n, m = cost.shape
    a, b, matrix = np.full(n, 1 / n), np.full(m, 1 / m), dense(cost).numpy()
    eps = share * cost.mean
    plan = ot.sinkhorn(a, b, matrix, eps, stopThr=1e-9, numItermax=5000)
    used = plan[plan > 0]
    entropy = (used * np.log(used * n * m)).sum()
    solution = transport(cost, eps=eps)
    assert solution.value == pytest.approx((plan * matrix).sum() + eps * entropy, rel=1e-4)
    exact = ot.emd2(a, b, matrix)
    lower, upper = solution.unregularised
    assert lower <= exact * (1 + 1e-12) and exact <= upper * (1 + 1e-12)


@pytest.mark.slow
def test_the_compiled_path_from_end_to_end_against_pot(monkeypatch):
    """16-bit copies, compiled sweeps and passes, at a size that is iterated on."""
    pytest.importorskip("numba")
    ot = pytest.importorskip("ot")
    passes, plain = [], certificate._compiled_pass
    monkeypatch.setattr(certificate, "_COMPILE_FROM", 0)
    monkeypatch.setattr(
        certificate, "_compiled_pass", lambda *inputs: passes.append(inputs) or plain(*inputs)
    )
    cost = problem(2100, 2000)
    n, m = cost.shape
    assert n * m >= sweep._COMPILE_FROM
    a, b, matrix = np.full(n, 1 / n), np.full(m, 1 / m), dense(cost).numpy()
    exact = ot.emd2(a, b, matrix, numItermax=10**7)
    for share in (0.5, 0.1, 0.05):  # below, POT takes thousands of iterations
        eps = share * cost.mean
        assert sinkhorn._dtype(cost, eps, 1e-4) == torch.int16
        plan = ot.sinkhorn(a, b, matrix, eps, stopThr=1e-10, numItermax=1500)
        used = plan[plan > 0]
        expected = (plan * matrix).sum() + eps * (used * np.log(used * n * m)).sum()
        passes.clear()
        solution = transport(cost, eps=eps)
        assert passes and solution.converged and solution.value == pytest.approx(expected, rel=2e-7)
        # POT's marginals are off by up to 1e-10, which leaves some 1e-8 of the value.
        assert solution.lower <= expected * (1 + 1e-7) and expected <= solution.upper * (1 + 1e-7)
        lower, upper = solution.unregularised
        assert lower <= exact * (1 + 1e-12) and exact <= upper * (1 + 1e-12)


def test_gaussians_in_closed_form():
    """Equal covariances, far apart: OT is the squared distance of the means, up to sampling."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    y = x.flip(0) + torch.tensor([3.0, -4.0, 0.0])
    bracket = unregularised(GroundCost(x, y), tolerance=1e-3)
    assert bracket.value == pytest.approx(25.0, rel=1e-3)


def test_samples_of_gaussians_are_as_far_apart_as_their_moments_say():
    """A positive definite linear map is optimal, so the closed form holds for the samples too."""
    generator = torch.Generator().manual_seed(0)
    x, root = (torch.randn(size, 3, generator=generator).double() for size in (300, 3))
    y = x @ (root @ root.T / 2 + 0.3 * torch.eye(3)) + torch.tensor([1.0, 0.0, -2.0])
    labels = torch.zeros(300, dtype=torch.int64)
    a, b = (class_gaussians(z, labels, 1, precision=torch.float64) for z in (x, y))
    means = bures_squared(a, b, means_only=True)
    expected = means + (bures_squared(a, b) - means) * 299 / 300  # covariances over n, not n - 1
    bracket = unregularised(
        GroundCost(x, y[torch.randperm(300, generator=generator)]), tolerance=2e-3
    )
    assert bracket.lower <= expected.item() * (1 + 1e-9)
    assert expected.item() <= bracket.upper * (1 + 1e-9)
    assert bracket.value == pytest.approx(expected.item(), rel=1e-3)


def divergence(x, y, eps=20.0, tolerance=1e-5):
    terms = [
        transport(GroundCost(*pair), eps=eps, tolerance=tolerance / 3, symmetric=pair[0] is pair[1])
        for pair in ((x, y), (x, x), (y, y))
    ]
    return debiased(*terms, tolerance=tolerance)


def test_the_debiased_value_is_zero_at_home_symmetric_and_monotone_in_a_shift():
    x, _ = labelled(80, 3)
    y, _ = labelled(70, 4)
    terms = transport(GroundCost(x, x), eps=20.0, tolerance=1e-5)
    home = divergence(x, x.clone())
    assert abs(home.value) <= home.gap * terms.value
    assert home.gap <= 1e-5
    forth, back = divergence(x, y), divergence(y, x)
    assert forth.value == pytest.approx(back.value, abs=2e-5 * terms.value)
    values = [divergence(x, x + shift).value for shift in (0.1, 0.5, 1.0)]
    # A translation adds exactly its squared length.
    assert values == pytest.approx([D * shift**2 for shift in (0.1, 0.5, 1.0)], rel=1e-2)


@pytest.mark.parametrize("with_labels", [False, True])
def test_the_debiased_value_is_geomloss_at_the_same_eps(with_labels):
    geomloss = pytest.importorskip("geomloss", reason="the extra [test]")
    (x, labels_x), (y, labels_y) = labelled(80, 3), labelled(70, 4, shift=0.7)
    places = torch.linspace(0, 2, CLASSES)[:, None].double()
    table, blur = torch.cdist(places, places).square(), 2.0

    def cost(a, b):
        costs = torch.cdist(a[..., :-1], b[..., :-1]).square() / 2
        if with_labels:
            costs = costs + table[a[..., -1].long()[..., None], b[..., None, :, -1].long()]
        return costs

    # Its eps is blur^2, and its own cost half of the squared distance.
    options = {"blur": blur, "scaling": 0.98, "backend": "tensorized", "diameter": 40.0}
    given = {"cost": cost} if with_labels else {}
    loss = geomloss.SamplesLoss("sinkhorn", p=2, **options, **given)
    inputs = [x.double(), y.double()]
    if with_labels:  # as one more dimension
        pairs = zip(inputs, (labels_x, labels_y), strict=True)
        inputs = [torch.cat([features, labels[:, None]], 1) for features, labels in pairs]

    def solved(a, labels_a, b, labels_b, symmetric=False):
        terms = {"labels_x": labels_a, "labels_y": labels_b, "table": table} if with_labels else {}
        ground = GroundCost(a, b, lam_x=0.5, **terms)
        return transport(ground, eps=blur**2, tolerance=1e-6, symmetric=symmetric)

    across = solved(x, labels_x, y, labels_y)
    self_terms = [solved(*pair, *pair, symmetric=True) for pair in ((x, labels_x), (y, labels_y))]
    solution = debiased(across, *self_terms, tolerance=1e-5)
    assert solution.value == pytest.approx(loss(*inputs).item(), abs=1e-4 * across.value)


def test_self_terms_agree_with_two_potentials():
    cost = problem(60, 60, shift=0.0)
    x, labels = labelled(60, 0)
    table = bures_squared(class_gaussians(x, labels, CLASSES))
    cost = GroundCost(x, x, labels_x=labels, labels_y=labels, table=table)
    for share in (0.2, 0.02):
        eps = share * cost.mean
        solution = transport(cost, eps=eps, symmetric=True)
        assert solution.converged and solution.iterations < 60
        assert solution.value == pytest.approx(transport(cost, eps=eps).value, rel=1e-4)


def test_sample_order_and_class_names_do_not_matter():
    (x, labels_x), (y, labels_y) = labelled(50, 5), labelled(60, 6)
    table = torch.rand(CLASSES, CLASSES, dtype=torch.float64)
    base = transport(GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table), eps=3.0)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    renamed = CLASSES - 1 - labels_x
    reordered = transport(
        GroundCost(x[order], y, labels_x=renamed[order], labels_y=labels_y, table=table.flip(0)),
        eps=3.0,
    )
    assert reordered.value == pytest.approx(base.value, rel=1e-5)
    torch.testing.assert_close(reordered.f, base.f[order], rtol=1e-3, atol=1e-2)


def test_a_start_saves_iterations_and_streaming_changes_nothing():
    cost = problem(300, 200)
    eps = 0.05 * cost.mean
    cold = transport(cost, eps=eps)
    warm = transport(cost, eps=eps, start=cold.g)
    assert warm.iterations < cold.iterations / 2
    assert warm.value == pytest.approx(cold.value, rel=1e-6)
    streamed = transport(cost, eps=eps, memory=beside_the_copy(300, 200, torch.device("cpu")))
    assert streamed.value == pytest.approx(cold.value, rel=1e-7)


def test_the_start_of_another_problem_saves_iterations_or_costs_two():
    cost = problem(300, 200)
    eps = 0.005 * cost.mean
    cold = transport(cost, eps=eps)
    near = transport(problem(300, 200, shift=0.32), eps=eps)
    warm = transport(cost, eps=eps, start=near.g)
    assert warm.iterations <= 0.9 * cold.iterations
    moved = problem(200, 200, seed=1, shift=8.0)  # of other samples, and far
    far = transport(cost, eps=eps, start=transport(moved, eps=eps).f)
    assert far.iterations == cold.iterations + 2 and torch.equal(far.g, cold.g)
    assert warm.value == pytest.approx(cold.value, rel=1e-4)


def test_stale_potentials_are_found_out():
    cost = problem(40, 30)
    for share, far in itertools.product((0.01, 0.05, 1.0), (1e4, 1e8, 1e300)):
        eps = share * cost.mean
        wild = torch.linspace(-1, 1, 30).double() * far * cost.mean
        warm, cold = transport(cost, eps=eps, start=wild), transport(cost, eps=eps)
        assert warm.converged and warm.value == cold.value
        assert warm.iterations <= cold.iterations + 2


@pytest.mark.parametrize("size", [1e30, 1e300])
def test_a_start_beyond_all_costs_is_no_start(size):
    cost = problem(30, 20)
    expected = transport(cost, eps=0.1 * cost.mean)
    for start in (torch.full((20,), size, dtype=torch.float64), size * torch.eye(20).double()[0]):
        solved = transport(cost, eps=0.1 * cost.mean, start=start)
        assert solved.value == pytest.approx(expected.value, rel=1e-6)


def test_gradients_do_not_reach_features():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cost = GroundCost(x, x + 1)
    plain = GroundCost(x.detach(), x.detach() + 1)
    assert transport(cost, eps=1.0).value == transport(plain, eps=1.0).value
    assert not bures_squared(class_gaussians(x, torch.arange(40) % 3, 3)).requires_grad


def test_an_unconverged_run_is_no_number():
    cost = problem(200, 150)
    stopped = transport(cost, eps=0.01 * cost.mean, max_iterations=3)
    assert not stopped.converged and math.isnan(stopped.value) and stopped.gap > 1e-4
    assert stopped.lower < stopped.upper
    fine = transport(cost, eps=0.01 * cost.mean)
    value = debiased(stopped, fine, fine)
    assert not value.converged and math.isnan(value.value)
    assert math.isnan(unregularised(cost, max_iterations=5).value)


def test_a_debiased_value_is_judged_by_the_sum_of_its_gaps():
    """A term may take more than a third of the tolerance where the others take less."""
    cost = problem(60, 60)
    solved = transport(cost, eps=0.05 * cost.mean, tolerance=1e-7)

    def term(gap, converged):
        return replace(solved, upper=(1 + gap) * solved.lower, gap=gap, converged=converged)

    tight, loose = term(1e-6, True), term(6.5e-5, False)
    value = debiased(loose, tight, tight)
    assert value.converged and value.gap == pytest.approx(6.7e-5, rel=1e-2)
    assert value.value == pytest.approx(0.0, abs=1e-12)
    assert debiased(tight, loose, tight).converged
    assert not debiased(loose, tight, term(4e-5, True)).converged


def test_what_self_terms_leave_of_the_tolerance_is_for_the_other():
    cost = problem(60, 60)
    solved = transport(cost, eps=0.05 * cost.mean, tolerance=1e-7)

    def remaining(gap_a, gap_b, **changes):
        a, b = (
            replace(solved, upper=(1 + gap) * solved.lower, **changes) for gap in (gap_a, gap_b)
        )
        return sinkhorn.left_for_across(a, b, 1e-4)

    assert remaining(0.0, 0.0) == pytest.approx(1e-4)
    assert remaining(1e-5, 3e-5) == pytest.approx(6e-5, rel=1e-3)
    assert remaining(5e-5, 5e-5) == pytest.approx(1e-4 / 3)
    assert remaining(0.0, 0.0, lower=-1.0) == 1e-4 / 3


X, Y = torch.randn(4, 3), torch.randn(5, 3)


LABELS = {"labels_x": torch.tensor([0, 1, 1, 0]), "labels_y": torch.tensor([0, 1, 2, 2, 1])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.clone().index_fill_(0, torch.tensor([2]), torch.nan)}, "x: sample 2 holds NaN"),
        ({"y": Y / 0}, "y: sample 0 holds NaN or infinity"),
        ({"y": torch.randn(5, 4)}, "x has 3 dimensions, but y has 4"),
        ({"x": X[:1], "labels_x": torch.tensor([0])}, "x has one sample"),
        ({"y": Y[:0], "labels_y": torch.zeros(0, dtype=torch.int64)}, "y must be"),
        ({"labels_x": torch.tensor([0, 1, 2, 0])}, r"x: sample 2 has label 2, outside \[0, 2\)"),
        ({"labels_y": torch.tensor([0, 1, -1, 2, 1])}, "y: sample 2 has label -1"),
        ({"labels_y": None}, "go together"),
        ({"table": -torch.ones(2, 3)}, "negative numbers"),
        ({"table": torch.full((2, 3), torch.nan)}, "holds NaN"),
        ({"lam_x": -1.0}, "lam_x and lam_y"),
        ({"lam_x": 0.0, "lam_y": 0.0}, "all costs are zero"),
        ({"x": 1e200 * X.double()}, "mean cost is nan, outside"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    arguments = {"x": X, "y": Y, "table": torch.ones(2, 3), **LABELS} | change
    with pytest.raises(ValueError, match=message):
        GroundCost(**arguments)


def test_bad_options_are_refused_by_name():
    cost = GroundCost(X, Y)
    for eps in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="eps must be positive"):
            transport(cost, eps=eps)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        unregularised(cost, tolerance=0.0)
    with pytest.raises(ValueError, match=r"start must be finite \[5\]"):
        transport(cost, eps=1.0, start=torch.zeros(4))
    halves = torch.tensor([0, 1, 0, 1])
    for x, y, labels, table in (
        (X, Y, None, None),
        (X, X + 1, None, None),
        (X, X, (halves, 1 - halves), torch.zeros(2, 2)),
        (X, X, (halves, halves), torch.tensor([[0.0, 1.0], [2.0, 0.0]])),
        (X, X, (halves, halves), torch.zeros(2, 3)),
    ):
        terms = {"labels_x": labels[0], "labels_y": labels[1]} if labels else {}
        with pytest.raises(ValueError, match="symmetric is for a set against itself"):
            transport(GroundCost(x, y, table=table, **terms), eps=1.0, symmetric=True)
    with pytest.raises(ValueError, match="may be used"):
        transport(cost, eps=1.0, memory=10)
    small, large = transport(cost, eps=1.0), transport(cost, eps=2.0)
    with pytest.raises(ValueError, match="different eps"):
        debiased(small, large, large)
