"""Certified entropic transport against POT, closed forms, float64 log-domain loops and laws."""

from __future__ import annotations

import dataclasses
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from triton_interpreter import interpreted, run_interpreted

from kernels import alternating, certificate, ground_cost, reference, sinkhorn, stored_cost, sweep
from kernels.bures import bures_squared, class_gaussians
from kernels.certificate import certify, relative_gap
from kernels.ground_cost import STRIP_ROWS, GroundCost
from kernels.sinkhorn import debiased, transport, unregularised
from kernels.stored_cost import COARSE, FINE, SINGLE, beside_the_copy, store

CLASSES, D = 5, 16


def labelled(n: int, seed: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    labels[:CLASSES] = torch.arange(CLASSES)
    centres = torch.linspace(-2, 2, CLASSES)[:, None] * torch.ones(D)
    return centres[labels] + torch.randn(n, D, generator=generator) + shift, labels


def problem(n: int, m: int, seed: int = 0, shift: float = 0.3, **options) -> GroundCost:
    (x, labels_x), (y, labels_y) = labelled(n, seed), labelled(m, seed + 1, shift)
    table = bures_squared(
        class_gaussians(x, labels_x, CLASSES), class_gaussians(y, labels_y, CLASSES)
    )
    return GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table, **options)


def dense(cost: GroundCost) -> Tensor:
    return cost.rows(0, cost.shape[0])


def test_the_ground_cost_is_its_formula():
    (x, labels_x), (y, labels_y) = labelled(40, 0), labelled(33, 1)
    table = torch.rand(CLASSES, CLASSES)
    cost = GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table, lam_x=0.5, lam_y=3.0)
    expected = 0.5 * torch.cdist(x.double(), y.double()) ** 2 + 3 * table[labels_x][:, labels_y]
    sorted_rows = expected[cost.x.order][:, cost.y.order]
    torch.testing.assert_close(dense(cost), sorted_rows)
    assert cost.mean == pytest.approx(expected.mean().item())
    torch.testing.assert_close(cost.x.unsorted(cost.x.labels), labels_x)


@pytest.mark.parametrize("copy", [COARSE, SINGLE, FINE])
def test_the_stored_cost_is_off_by_half_a_step(copy, caplog):
    cost = problem(300, 41)
    stored = store(cost, copy=copy)
    held = stored.offset[:, None] + stored.step[:, None] * stored.q
    bound = 0.51 * stored.step[:, None] + 1e-5 * cost.mean
    assert ((held - dense(cost)).abs() <= (bound if copy is COARSE else 1e-6 * cost.mean)).all()
    caplog.set_level("INFO")
    held_at = beside_the_copy(cost) + stored.q.nbytes
    assert store(cost, copy=copy, memory=held_at).q is not None and not caplog.messages
    streamed = store(cost, copy=copy, memory=held_at - 1)
    assert streamed.q is None
    assert [m for m in caplog.messages if "300 x 41 cost matrix is computed again" in m]
    assert torch.equal(torch.cat([q for _, q in streamed.parts()]), stored.q)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3), (33, 70), (100, 1000)])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_compiled_sweep_equals_float64(threads, shape, dtype, monkeypatch):
    pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-32768, 32767, shape, generator=generator).to(dtype)
    f, g = (torch.randn(size, generator=generator) - 3 for size in shape)
    kappa = 30 / 65536 * (1 + torch.rand(shape[0], generator=generator))
    bounds = torch.tensor(sorted({0, 1, shape[0] // 2 + 1, shape[0]}))
    expected = reference.sinkhorn_sweep(q, f.double(), g.double(), kappa.double(), bounds)
    monkeypatch.setattr(sweep, "_COMPILE_FROM", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = sweep.sinkhorn_sweep(q, f, g, kappa, bounds)
    for mine, right, atol in zip(found, expected, (2e-5, 1e-8), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=3e-5, atol=atol)


def test_the_compiled_quantization_is_that_of_the_operators(monkeypatch):
    pytest.importorskip("numba")
    for cost in (problem(300, 41), problem(STRIP_ROWS + 7, 30, lam_x=0.5, lam_y=2.0)):
        plain = store(cost, copy=COARSE)
        monkeypatch.setattr(stored_cost, "COMPILE_FROM", 0)
        compiled = store(cost, copy=COARSE)
        monkeypatch.undo()
        for one, other in ((plain.offset, compiled.offset), (plain.step, compiled.step)):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * cost.mean)
        assert (compiled.q.int() - plain.q.int()).abs().max() <= 2  # float32 of another order
        held = compiled.offset[:, None] + compiled.step[:, None] * compiled.q
        assert (
            (held - dense(cost)).abs() <= 0.51 * compiled.step[:, None] + 1e-6 * cost.mean
        ).all()


def test_blocks_are_classes_unless_those_are_large_or_many(monkeypatch):
    labels = torch.arange(4).repeat_interleave(torch.tensor([3, 1, 30, 2]))
    (x, y), tables = torch.randn(2, 36, 3), torch.ones(4, 4)

    def bounds():
        cost = GroundCost(x, y, labels_x=labels, labels_y=labels, table=tables)
        return cost.x.bounds.tolist()

    assert bounds() == [0, 3, 4, 34, 36]
    monkeypatch.setattr(ground_cost, "_LONGEST", 12)
    assert bounds() == [0, 3, 4, 14, 24, 34, 36]
    monkeypatch.setattr(ground_cost, "_BLOCKS", 4)
    assert bounds() == [0, 3, 18, 34, 36]
    assert GroundCost(x, y).x.bounds.tolist() == [0, 18, 36]
    generator = torch.Generator().manual_seed(0)
    for most in (2, 5, 40):  # whatever sizes classes have
        monkeypatch.setattr(ground_cost, "_BLOCKS", most)
        for _ in range(50):
            sizes = torch.rand(30, generator=generator).pow(-1.5).long()
            labels = torch.arange(30).repeat_interleave(sizes)
            found = ground_cost.Cloud(*[labels] * 4).bounds
            assert (found.diff() > 0).all() and found[0] == 0 and found[-1] == len(labels)
            assert len(found) - 1 <= most


def test_memory_counts_column_sums_of_blocks_and_what_pytorch_keeps(monkeypatch):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    one, many = torch.zeros(60, dtype=torch.int64), torch.arange(60)
    costs = [
        GroundCost(x, x + 1, labels_x=y, labels_y=y, table=torch.ones(60, 60)) for y in (one, many)
    ]
    few, more = map(beside_the_copy, costs)
    assert more - few == 2 * 4 * 59 * 60
    with pytest.raises(ValueError, match="block sums of the 60 x 60"):
        store(costs[1], memory=more - 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 40)
    assert stored_cost.free_memory(torch.device("cuda")) == 130


def test_mass_between_classes_moves_at_once(monkeypatch):
    """Classes far apart and of different sizes, between which plain iterations move little mass."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(30, D, generator=generator)
    centres = first, first + torch.randn(30, D, generator=generator) / 2
    labels = torch.randint(30, (2, 400), generator=generator)
    noise = torch.randn(2, 400, D, generator=generator) / 2
    x, y = (c[k] + e for c, k, e in zip(centres, labels, noise, strict=True))
    table = torch.cdist(*centres).square()
    cost = GroundCost(x, y, labels_x=labels[0], labels_y=labels[1], table=table)
    eps = 0.05 * cost.mean
    both = transport(cost, eps=eps)
    zero = torch.zeros(400, dtype=torch.float64)
    monkeypatch.setattr(alternating.Potentials, "_between_blocks", lambda *_: zero)
    plain = transport(cost, eps=eps)
    assert both.value == pytest.approx(plain.value, rel=2e-4)
    assert both.iterations < plain.iterations / 2


def test_steps_between_blocks_are_finite_whatever_the_mass():
    stored = store(problem(60, 50))
    potentials = alternating.Potentials(stored, symmetric=False, start=None, max_iterations=9)
    blocks = len(stored.cost.x.bounds) - 1
    for plan in (torch.zeros(blocks, 50), torch.eye(blocks, 50) * 1e-30, torch.ones(blocks, 50)):
        assert potentials._between_blocks(plan).isfinite().all()


def test_a_self_term_sums_no_blocks(monkeypatch):
    seen, plain = [], alternating.sinkhorn_sweep

    def sweeps(*inputs):
        found = plain(*inputs)
        seen.append(len(found[1]))
        return found

    monkeypatch.setattr(alternating, "sinkhorn_sweep", sweeps)
    x, labels = labelled(60, 0)
    table = bures_squared(class_gaussians(x, labels, CLASSES))
    cost = GroundCost(x, x, labels_x=labels, labels_y=labels, table=table)
    own = transport(cost, eps=cost.mean / 20, symmetric=True)
    assert own.converged and {*seen} == {1}
    transport(cost, eps=cost.mean / 20)
    assert seen[-1] == CLASSES


@pytest.mark.parametrize("share", [0.5, 0.05, 0.01])
def test_values_equal_the_log_domain_loop_and_bounds_hold(share):
    cost = problem(150, 120)
    eps = share * cost.mean
    _, _, expected = reference.entropic_transport(dense(cost), eps, 3000)
    found = transport(cost, eps=eps, tolerance=1e-4)
    assert found.converged and found.gap <= 1e-4
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.lower <= expected * (1 + 1e-12) and expected <= found.upper
    assert relative_gap(found.lower, found.upper) == found.gap


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
    found = transport(cost, eps=eps)
    assert found.value == pytest.approx((plan * matrix).sum() + eps * entropy, rel=1e-4)
    exact = ot.emd2(a, b, matrix)
    lower, upper = found.unregularised
    assert lower <= exact * (1 + 1e-12) and exact <= upper * (1 + 1e-12)


@pytest.mark.slow
def test_the_compiled_path_from_end_to_end_against_pot(monkeypatch):
    """16-bit copies, compiled quantization, sweeps and passes, at a size that is iterated on."""
    pytest.importorskip("numba")
    ot = pytest.importorskip("ot")
    passes, plain = [], certificate._compiled_pass
    monkeypatch.setattr(certificate, "_COMPILE_FROM", 0)
    monkeypatch.setattr(
        certificate, "_compiled_pass", lambda *inputs: passes.append(inputs) or plain(*inputs)
    )
    cost = problem(2100, 2000)
    n, m = cost.shape
    assert n * m >= max(sweep._COMPILE_FROM, stored_cost.COMPILE_FROM)
    a, b, matrix = np.full(n, 1 / n), np.full(m, 1 / m), dense(cost).numpy()
    exact = ot.emd2(a, b, matrix, numItermax=10**7)
    for share in (0.5, 0.1, 0.05):  # below, POT takes thousands of iterations
        eps = share * cost.mean
        assert sinkhorn._copy(cost, eps, 1e-4) == COARSE
        plan = ot.sinkhorn(a, b, matrix, eps, stopThr=1e-10, numItermax=1500)
        used = plan[plan > 0]
        right = (plan * matrix).sum() + eps * (used * np.log(used * n * m)).sum()
        passes.clear()
        found = transport(cost, eps=eps)
        assert passes and found.converged and found.value == pytest.approx(right, rel=2e-7)
        # POT's marginals are off by up to 1e-10, which leaves some 1e-8 of the value.
        assert found.lower <= right * (1 + 1e-7) and right <= found.upper * (1 + 1e-7)
        lower, upper = found.unregularised
        assert lower <= exact * (1 + 1e-12) and exact <= upper * (1 + 1e-12)


def test_the_bracket_closes_on_exact_transport():
    ot = pytest.importorskip("ot")
    cost = problem(200, 150)
    exact = ot.emd2(np.full(200, 1 / 200), np.full(150, 1 / 150), dense(cost).numpy())
    found = unregularised(cost, tolerance=2e-3)
    assert found.converged and found.gap <= 2e-3
    assert found.lower <= exact <= found.upper
    assert found.value == pytest.approx(exact, rel=1e-3)


def test_the_bracket_of_a_set_and_itself_is_zero_to_a_millionth_of_the_mean_cost():
    x, labels = labelled(120, 0)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    table = bures_squared(class_gaussians(x, labels, CLASSES))
    terms = {"labels_x": labels, "labels_y": labels[order], "table": table}
    cost = GroundCost(x, x[order], **terms)
    home = unregularised(cost)
    assert home.converged and home.gap <= 1e-3
    assert 0 <= home.lower <= home.value <= home.upper <= 1e-6 * cost.mean
    away = unregularised(GroundCost(x, x[order] + 1.0, **terms))
    assert away.gap == relative_gap(away.lower, away.upper) <= 1e-3


def test_a_copy_too_coarse_to_be_certified_on_is_iterated_on_all_the_same(monkeypatch):
    monkeypatch.setattr(sinkhorn, "_CHEAP", 0)
    cost = problem(300, 200)
    eps = 0.02 * cost.mean
    found = transport(cost, eps=eps, tolerance=2e-4)
    right = transport(cost, eps=eps, tolerance=1e-6)
    assert found.converged and found.value == pytest.approx(right.value, rel=1e-5)


def test_brackets_of_every_eps_are_kept(monkeypatch):
    cost = problem(20, 15)
    right = certify(cost, torch.zeros(15).double(), 0.1 * cost.mean, torch.ones(15).double())
    found = iter([(0.999, 1.5), (0.5, 1.0)])
    monkeypatch.setattr(
        sinkhorn, "_certified", lambda *_: dataclasses.replace(right, unregularised=next(found))
    )
    bracket = unregularised(cost, tolerance=1e-2)
    assert (bracket.lower, bracket.upper) == bracket.unregularised == (0.999, 1.0)
    assert bracket.converged and bracket.value == pytest.approx(0.9995)


def test_bounds_that_are_none_have_no_gap_to_accept():
    assert relative_gap(0.0, 0.0) == 0 and relative_gap(-1.0, 2.0) == 1
    assert relative_gap(1.0, 1.25) == pytest.approx(0.2)
    assert relative_gap(1.0, 1.25, 2.5) == pytest.approx(0.1)
    assert relative_gap(0.0, 0.0, 1.0) == 0 and relative_gap(-1.0, -1.0, 1.0) == math.inf
    for lower, upper in ((1.0, math.nan), (math.nan, 1.0), (-3.0, -1.0), (1.0, math.inf)):
        assert not relative_gap(lower, upper) <= 1
    assert relative_gap(1.0, math.nan) > 1


def test_bounds_hold_for_any_potential():
    cost = problem(60, 50)
    eps = 0.1 * cost.mean
    _, _, right = reference.entropic_transport(dense(cost), eps, 1000)
    for seed in range(5):
        g = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double() * 10**seed
        found = certify(cost, g, eps, torch.rand(50).double())
        assert found.lower <= right <= found.upper
        assert found.unregularised[0] <= found.unregularised[1]


def exactly(cost: GroundCost, eps: float) -> float:
    """The entropic value by Sinkhorn's iterations in 40 digits, on features taken as exact."""
    with mpmath.workdps(40):
        x, y = ([[mpmath.mpf(v) for v in row] for row in c.x.tolist()] for c in (cost.x, cost.y))
        n, m = cost.shape
        costs = [
            [
                mpmath.fsum((p - q) ** 2 for p, q in zip(x[i], y[j], strict=True))
                + mpmath.mpf(float(cost.table[cost.x.labels[i], cost.y.labels[j]]))
                for j in range(m)
            ]
            for i in range(n)
        ]
        f, g = [mpmath.mpf(0)] * n, [mpmath.mpf(0)] * m

        def soft(rest, by, k):
            return -eps * mpmath.log(
                mpmath.fsum(mpmath.exp((r - c) / eps) for r, c in zip(rest, by, strict=True)) / k
            )

        for _ in range(60):
            f = [soft(g, costs[i], m) for i in range(n)]
            g = [soft(f, [row[j] for row in costs], n) for j in range(m)]
        return mpmath.fsum(f) / n + mpmath.fsum(g) / m


@pytest.mark.parametrize("scale", [1e-21, 1e-10, 1e9, 1e20])
def test_costs_that_float32_cannot_hold_are_refused_and_others_certified(scale):
    x, y = (labelled(size, seed)[0].double() for seed, size in enumerate((40, 30)))
    if not 1e-20 < scale < 1e20:
        with pytest.raises(ValueError, match=r"outside \[1e-20, 1e\+20\], where float32"):
            GroundCost(scale * x, scale * y)
        return
    cost = GroundCost(scale * x, scale * y)
    eps = 0.1 * cost.mean
    right = reference.entropic_transport(dense(cost), eps, 1000)[2]
    for copy in (COARSE, SINGLE, FINE):
        stored = store(cost, copy=copy)
        assert (stored.slack / cost.mean) < 1e-4
        g = transport(cost, eps=eps).g[cost.y.order]
        found = certify(stored, g, eps, torch.ones(30).double())
        assert found.lower <= right <= found.upper
    assert transport(cost, eps=eps).value == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize("copy", [None, COARSE, SINGLE, FINE])
def test_bounds_hold_in_forty_digits(copy):
    cost = problem(7, 6)
    eps = 0.2 * cost.mean
    right = exactly(cost, eps)
    solved = transport(cost, eps=eps, tolerance=1e-9)
    assert abs(solved.value - right) <= 1e-8 * right
    costs = cost if copy is None else store(cost, copy=copy)
    for size in (0.0, 1e-6, 1e-3):
        noise = torch.randn(6, generator=torch.Generator().manual_seed(1)).double()
        g = solved.g[cost.y.order] + size * eps * noise
        found = certify(costs, g, eps, torch.ones(6).double())
        assert found.lower - 1e-12 * right <= right <= found.upper + 1e-12 * right
    assert copy is None or found.lower < right < found.upper


@pytest.mark.parametrize("d", [5, 200])
def test_slack_covers_what_a_copy_is_off_for_any_plan(d):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 60, d, generator=generator) + 3
    labels, table = torch.arange(60) % 3, 10 * torch.rand(3, 3, generator=generator)
    cost = GroundCost(x, y * 2, labels_x=labels, labels_y=labels, table=table, lam_x=0.7)
    for copy in (COARSE, SINGLE, FINE):
        stored = store(cost, copy=copy)
        assert stored.q is not None
        off = stored.offset[:, None] + stored.step[:, None] * stored.q - dense(cost)
        worst = []
        for signed in (off, -off):  # permutations are the extreme plans
            rows, columns = linear_sum_assignment(-signed.numpy())
            worst.append(float(signed[rows, columns].mean()))
        assert max(worst) <= stored.slack
        assert stored.slack <= {COARSE: 4e-5, SINGLE: 1e-5, FINE: 4e-7}[copy] * cost.mean
    single = cost.rows(0, 60, dtype=torch.float32)
    norms = cost.x.squares[:, None] + cost.y.squares
    assert ((single - dense(cost)).abs() <= cost.rounding() / norms.mean() * norms).all()


def test_a_product_of_fewer_bits_is_found_out(monkeypatch):
    cost = problem(80, 70)
    assert math.isfinite(cost.rounding())
    plain = Tensor.addmm_

    def fewer_bits(self, a, b, **options):
        if a.dtype == torch.float64:
            return plain(self, a, b, **options)
        return plain(self, a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype), **options)

    def one_by_one(self, a, b, **options):
        for k in range(a.shape[1]):
            plain(self, a[:, k : k + 1], b[k : k + 1], **options)
            options["beta"] = 1
        return self

    monkeypatch.setattr(sinkhorn, "_CHEAP", 0)
    for wrong in (fewer_bits, one_by_one):
        monkeypatch.setattr(Tensor, "addmm_", wrong)
        vars(cost).pop("_sums_blocks", None)
        assert cost.rounding() == math.inf
        found = transport(cost, eps=0.1 * cost.mean)
        monkeypatch.setattr(Tensor, "addmm_", plain)
        vars(cost).pop("_sums_blocks", None)
        right = transport(cost, eps=0.1 * cost.mean)
        assert found.lower <= right.upper and right.lower <= found.upper


@pytest.mark.parametrize("copy", [COARSE, FINE])
@pytest.mark.parametrize("shape", [(2, 3), (61, 33), (40, 300)])
def test_the_compiled_pass_equals_strips(shape, copy, monkeypatch):
    pytest.importorskip("numba")
    cost = problem(max(shape[0], CLASSES), max(shape[1], CLASSES))
    stored = store(cost, copy=copy)
    m = cost.shape[1]
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(m, generator=generator).double()
    for size in (0.1, 1e3):
        g = torch.randn(m, generator=generator).double() * size * cost.mean
        by_strips = certify(stored, g, 0.02 * cost.mean, kept)
        monkeypatch.setattr(certificate, "_COMPILE_FROM", 0)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        compiled = certify(stored, g, 0.02 * cost.mean, kept)
        monkeypatch.undo()
        close = {"rtol": 1e-10, "atol": 1e-10 * cost.mean}
        for name, found in vars(compiled).items():
            torch.testing.assert_close(
                torch.as_tensor(found), torch.as_tensor(getattr(by_strips, name)), **close
            )


def test_gaussians_in_closed_form():
    """Equal covariances, far apart: OT is the squared distance of the means, up to sampling."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    y = x.flip(0) + torch.tensor([3.0, -4.0, 0.0])
    found = unregularised(GroundCost(x, y), tolerance=1e-3)
    assert found.value == pytest.approx(25.0, rel=1e-3)


def test_samples_of_gaussians_are_as_far_apart_as_their_moments_say():
    """A positive definite linear map is optimal, so the closed form holds for the samples too."""
    generator = torch.Generator().manual_seed(0)
    x, root = (torch.randn(size, 3, generator=generator).double() for size in (300, 3))
    y = x @ (root @ root.T / 2 + 0.3 * torch.eye(3)) + torch.tensor([1.0, 0.0, -2.0])
    labels = torch.zeros(300, dtype=torch.int64)
    a, b = (class_gaussians(z, labels, 1, precision=torch.float64) for z in (x, y))
    means = bures_squared(a, b, means_only=True)
    expected = means + (bures_squared(a, b) - means) * 299 / 300  # covariances over n, not n - 1
    found = unregularised(
        GroundCost(x, y[torch.randperm(300, generator=generator)]), tolerance=2e-3
    )
    assert found.lower <= expected.item() * (1 + 1e-9)
    assert expected.item() <= found.upper * (1 + 1e-9)
    assert found.value == pytest.approx(expected.item(), rel=1e-3)


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
    one, other = divergence(x, y), divergence(y, x)
    assert one.value == pytest.approx(other.value, abs=2e-5 * terms.value)
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
        found = torch.cdist(a[..., :-1], b[..., :-1]).square() / 2
        if with_labels:
            found = found + table[a[..., -1].long()[..., None], b[..., None, :, -1].long()]
        return found

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
        own = GroundCost(a, b, lam_x=0.5, **terms)
        return transport(own, eps=blur**2, tolerance=1e-6, symmetric=symmetric)

    across = solved(x, labels_x, y, labels_y)
    own = [solved(*pair, *pair, symmetric=True) for pair in ((x, labels_x), (y, labels_y))]
    found = debiased(across, *own, tolerance=1e-5)
    assert found.value == pytest.approx(loss(*inputs).item(), abs=1e-4 * across.value)


def test_self_terms_agree_with_two_potentials():
    cost = problem(60, 60, shift=0.0)
    x, labels = labelled(60, 0)
    table = bures_squared(class_gaussians(x, labels, CLASSES))
    cost = GroundCost(x, x, labels_x=labels, labels_y=labels, table=table)
    for share in (0.2, 0.02):
        eps = share * cost.mean
        one = transport(cost, eps=eps, symmetric=True)
        assert one.converged and one.iterations < 60
        assert one.value == pytest.approx(transport(cost, eps=eps).value, rel=1e-4)


def test_sample_order_and_class_names_do_not_matter():
    (x, labels_x), (y, labels_y) = labelled(50, 5), labelled(60, 6)
    table = torch.rand(CLASSES, CLASSES, dtype=torch.float64)
    base = transport(GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table), eps=3.0)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    renamed = CLASSES - 1 - labels_x
    other = transport(
        GroundCost(x[order], y, labels_x=renamed[order], labels_y=labels_y, table=table.flip(0)),
        eps=3.0,
    )
    assert other.value == pytest.approx(base.value, rel=1e-5)
    torch.testing.assert_close(other.f, base.f[order], rtol=1e-3, atol=1e-2)


def test_a_start_saves_iterations_and_streaming_changes_nothing():
    cost = problem(300, 200)
    eps = 0.05 * cost.mean
    cold = transport(cost, eps=eps)
    warm = transport(cost, eps=eps, start=cold.g)
    assert warm.iterations < cold.iterations / 2
    assert warm.value == pytest.approx(cold.value, rel=1e-6)
    streamed = transport(cost, eps=eps, memory=beside_the_copy(cost))
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
    wild = torch.linspace(-1, 1, 30).double() * 1e4 * cost.mean
    found = transport(cost, eps=0.05 * cost.mean, start=wild)
    cold = transport(cost, eps=0.05 * cost.mean)
    assert found.lower <= cold.upper and cold.lower <= found.upper
    assert not found.converged or found.value == pytest.approx(cold.value, rel=1e-4)


def test_an_unconverged_run_is_no_number():
    cost = problem(200, 150)
    found = transport(cost, eps=0.01 * cost.mean, max_iterations=3)
    assert not found.converged and math.isnan(found.value) and found.gap > 1e-4
    assert found.lower < found.upper
    fine = transport(cost, eps=0.01 * cost.mean)
    value = debiased(found, fine, fine)
    assert not value.converged and math.isnan(value.value)
    assert math.isnan(unregularised(cost, max_iterations=5).value)


def test_anderson_is_exact_on_linear_maps():
    matrix = torch.diag(torch.tensor([0.9, 0.5, 0.1]).double())
    target = torch.tensor([1.0, -2.0, 3.0]).double()
    point, anderson = torch.zeros(3).double(), alternating.Anderson()
    for _ in range(5):
        point = anderson.combine(point, matrix @ (target - point))
    torch.testing.assert_close(point, target, rtol=1e-4, atol=1e-4)


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
    two = torch.tensor([0, 1, 0, 1])
    for x, y, labels, table in (
        (X, Y, None, None),
        (X, X + 1, None, None),
        (X, X, (two, 1 - two), torch.zeros(2, 2)),
        (X, X, (two, two), torch.tensor([[0.0, 1.0], [2.0, 0.0]])),
        (X, X, (two, two), torch.zeros(2, 3)),
    ):
        terms = {"labels_x": labels[0], "labels_y": labels[1]} if labels else {}
        with pytest.raises(ValueError, match="symmetric is for a set against itself"):
            transport(GroundCost(x, y, table=table, **terms), eps=1.0, symmetric=True)
    with pytest.raises(ValueError, match="may be used"):
        transport(cost, eps=1.0, memory=10)
    one, two = transport(cost, eps=1.0), transport(cost, eps=2.0)
    with pytest.raises(ValueError, match="different eps"):
        debiased(one, two, two)


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3), (16, 512), (37, 517), (50, 2100)])
def test_interpreted_kernel_equals_float64(shape, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-32768, 32767, shape, generator=generator).to(dtype)
    f, g = (torch.randn(size, generator=generator) - 3 for size in shape)
    kappa = 30 / 65536 * (1 + torch.rand(shape[0], generator=generator))
    bounds = torch.tensor(sorted({0, 1, shape[0] // 2 + 1, shape[0]}))
    expected = reference.sinkhorn_sweep(q, f.double(), g.double(), kappa.double(), bounds)
    for strip_bytes in (1, 1 << 24):
        monkeypatch.setattr(sweep, "_STRIP_BYTES", strip_bytes)
        for found, right in zip(sweep._sweep(q, f, g, kappa, bounds), expected, strict=True):
            torch.testing.assert_close(found.double(), right, rtol=2e-5, atol=2e-5)
