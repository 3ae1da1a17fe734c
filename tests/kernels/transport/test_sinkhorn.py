"""Entropic transport against POT, geomloss, log-domain loops in float64 and laws."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.children import DEVICE
from helpers.clouds import CLASSES, dense, entropic_transport, labelled, problem, self_problem
from kernels.transport import certificate, sinkhorn, sweep
from kernels.transport.certificate import relative_gap
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import debiased, transport
from kernels.transport.store import beside_the_copy


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.5, 0.05, 0.01])
def test_values_equal_the_log_domain_loop_and_bounds_hold(share):
    cost = problem(150, 120, device=DEVICE)
    eps = share * cost.mean
    _, _, expected = entropic_transport(dense(cost).cpu(), eps, 3000)
    solution = transport(cost, eps=eps, tolerance=1e-4)
    streamed = transport(cost, eps=eps, memory=beside_the_copy(*cost.shape, DEVICE))
    assert streamed.converged and streamed.value == pytest.approx(solution.value, rel=1e-7)
    assert solution.converged and solution.gap <= 1e-4
    assert solution.value == pytest.approx(expected, rel=1e-6)
    assert solution.lower <= expected * (1 + 1e-12) and expected <= solution.upper
    assert relative_gap(solution.lower, solution.upper) == solution.gap


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_against_pot(share, monkeypatch):
    """The entropic value, and bounds of that and of exact transport, by 16-bit copies, compiled
    sweeps and passes, as large problems take them."""
    ot = pytest.importorskip("ot")
    pytest.importorskip("numba")
    monkeypatch.setattr(sinkhorn, "_CHEAP", 0)
    monkeypatch.setattr(sweep, "_COMPILE_FROM", 0)
    monkeypatch.setattr(certificate, "_COMPILE_FROM", 0)
    cost = problem(500, 400)
    eps = share * cost.mean
    assert sinkhorn._dtype(cost, eps, 1e-4) == torch.int16
    n, m = cost.shape
    a, b, matrix = np.full(n, 1 / n), np.full(m, 1 / m), dense(cost).numpy()
    plan = ot.sinkhorn(a, b, matrix, eps, stopThr=1e-10, numItermax=1500)
    used = plan[plan > 0]
    entropic = (plan * matrix).sum() + eps * (used * np.log(used * n * m)).sum()
    exact = ot.emd2(a, b, matrix, numItermax=10**7)
    solution = transport(cost, eps=eps)
    assert solution.converged and solution.value == pytest.approx(entropic, rel=2e-7)
    # POT's marginals are off by up to 1e-10, which leaves some 1e-8 of the value.
    assert solution.lower <= entropic * (1 + 1e-7) and entropic <= solution.upper * (1 + 1e-7)
    lower, upper = solution.unregularised
    assert lower <= exact * (1 + 1e-12) and exact <= upper * (1 + 1e-12)


def test_the_debiased_value_is_geomloss_at_the_same_eps():
    """Its cost is ours without halves; labels are one more dimension; its eps is blur^2."""
    geomloss = pytest.importorskip("geomloss", reason="the extra [test]")
    sets, places = (labelled(80, 3), labelled(70, 4, shift=0.7)), torch.linspace(0, 2, CLASSES)
    table, blur = torch.cdist(places[:, None], places[:, None]).square().double(), 2.0

    def cost(a, b):
        label_costs = table[a[..., -1].long()[..., None], b[..., None, :, -1].long()]
        return torch.cdist(a[..., :-1], b[..., :-1]).square() / 2 + label_costs

    options = {"blur": blur, "scaling": 0.98, "backend": "tensorized", "diameter": 40.0}
    loss = geomloss.SamplesLoss("sinkhorn", p=2, cost=cost, **options)
    expected = loss(*(torch.cat([x, labels[:, None]], 1).double() for x, labels in sets)).item()

    def solved(a, b):
        labels = {"labels_x": a[1], "labels_y": b[1], "table": table}
        ground = GroundCost(a[0] / 2**0.5, b[0] / 2**0.5, **labels)
        return transport(ground, eps=blur**2, tolerance=1e-6, symmetric=a is b)

    x, y = sets
    solution = debiased(solved(x, y), solved(x, x), solved(y, y), tolerance=1e-5)
    assert solution.value == pytest.approx(expected, abs=1e-4 * solved(x, y).value)


@pytest.mark.parametrize("share", [0.2, 0.02])
def test_a_set_and_itself_need_a_single_potential(share):
    cost = self_problem(60)
    solution = transport(cost, eps=share * cost.mean, symmetric=True)
    assert solution.converged and solution.iterations < 60
    assert solution.value == pytest.approx(transport(cost, eps=share * cost.mean).value, rel=1e-4)


def test_sample_order_and_class_names_do_not_matter():
    (x, labels_x), (y, labels_y) = labelled(50, 5), labelled(60, 6)
    table = torch.rand(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0)).double()
    base = transport(GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table), eps=3.0)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    renamed = CLASSES - 1 - labels_x
    reordered = transport(
        GroundCost(x[order], y, labels_x=renamed[order], labels_y=labels_y, table=table.flip(0)),
        eps=3.0,
    )
    assert reordered.value == pytest.approx(base.value, rel=1e-5)


def test_an_unconverged_run_is_no_number():
    cost = problem(200, 150)
    stopped = transport(cost, eps=0.01 * cost.mean, max_iterations=3)
    assert not stopped.converged and math.isnan(stopped.value) and stopped.gap > 1e-4
    assert stopped.lower < stopped.upper
    fine = transport(cost, eps=0.01 * cost.mean)
    value = debiased(stopped, fine, fine)
    assert not value.converged and math.isnan(value.value)
    assert math.isnan(transport(problem(30, 20), eps=1e-300).value)


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


X, Y = torch.randn(4, 3), torch.randn(5, 3)
LABELS = {"labels_x": torch.tensor([0, 1, 1, 0]), "labels_y": torch.tensor([0, 1, 2, 2, 1])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.clone().index_fill_(0, torch.tensor([2]), torch.nan)}, "x: sample 2 holds NaN"),
        ({"y": torch.randn(5, 4)}, "x has 3 dimensions, but y has 4"),
        ({"x": X[:1], "labels_x": torch.tensor([0])}, "x has one sample"),
        ({"labels_y": torch.tensor([0, 1, -1, 2, 1])}, "y: sample 2 has label -1"),
        ({"labels_y": None}, "go together"),
        ({"table": -torch.ones(2, 3)}, "negative numbers"),
        ({"table": torch.ones(3)}, r"table must be \[classes of x, classes of y\]"),
        ({"x": 1e200 * X.double()}, "mean cost is nan, outside"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    arguments = {"x": X, "y": Y, "table": torch.ones(2, 3), **LABELS} | change
    with pytest.raises(ValueError, match=message):
        GroundCost(**arguments)


HALVES, COST = torch.tensor([0, 1, 0, 1]), GroundCost(X, Y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps must be positive and finite"),
        ({"eps": math.inf}, "eps must be positive and finite"),
        ({"eps": 1.0, "tolerance": 0.0}, "tolerance must be positive"),
        ({"eps": 1.0, "memory": 10}, "may be used"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        transport(COST, **options)


@pytest.mark.parametrize(
    "change", [{"y": X + 1}, {"labels_y": 1 - HALVES}, {"table": torch.tensor([[0.0, 1], [2, 0]])}]
)
def test_a_cost_that_is_no_sets_with_itself_is_refused(change):
    terms = {"y": X, "labels_x": HALVES, "labels_y": HALVES, "table": torch.zeros(2, 2)}
    for pair in (GroundCost(X, **(terms | change)), COST):
        with pytest.raises(ValueError, match="symmetric=True needs the same samples"):
            transport(pair, eps=1.0, symmetric=True)


def test_terms_of_different_eps_are_refused():
    small, large = transport(COST, eps=1.0), transport(COST, eps=2.0)
    with pytest.raises(ValueError, match="different eps"):
        debiased(small, large, large)
