"""Row sums from one triangle against their twin in float64, and how self terms converge on them."""

from __future__ import annotations

import pytest
import torch
from clouds import self_problem
from triton_interpreter import interpreted, run_interpreted

from kernels import reference
from kernels.transport import alternating, sweep, triangle
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import Transport, transport
from kernels.transport.store import COARSE, beside_the_copy, store


def inputs(n: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-32768, 32767, (n, n), generator=generator).to(dtype)
    f, g = torch.randn(2, n, generator=generator) - 3
    return [q, f, g, 30 / 65536 * (1 + torch.rand(n, generator=generator))]


def test_a_triangle_of_a_stored_cost_tells_the_sums_of_whole_rows():
    stored = store(self_problem(300), copy=COARSE)
    assert stored.q is not None
    eps = 0.05 * stored.cost.mean
    f, kappa = -stored.offset / eps, stored.step / eps
    q, g = stored.q.double(), torch.zeros_like(f)
    triangular = reference.symmetric_row_sums(q, f, g, kappa)
    whole = reference.row_sums(q, f, g, kappa)
    half_steps = float((stored.step.max() + stored.cost.rounding()) / eps)
    torch.testing.assert_close(triangular, whole, rtol=0, atol=half_steps)
    assert not torch.equal(triangular, whole)


@pytest.mark.parametrize("n", [70, 800])
def test_the_cpu_sums_whole_rows(n):
    arguments = inputs(n, torch.int16)
    assert torch.equal(triangle.symmetric_row_sums(*arguments), sweep.row_sums(*arguments))


def test_a_cost_that_is_not_held_gives_the_same_value():
    cost = self_problem(600)
    eps = 0.05 * cost.mean
    held = transport(cost, eps=eps, symmetric=True)
    streamed = transport(cost, eps=eps, symmetric=True, memory=beside_the_copy(cost))
    assert streamed.converged and streamed.iterations == held.iterations
    assert streamed.value == pytest.approx(held.value, rel=1e-7)


def solutions(cost: GroundCost, share: float, row_sums, symmetric_row_sums) -> list[Transport]:
    """Of a self term, on whole rows and on a triangle."""
    solved = []
    for function in (row_sums, symmetric_row_sums):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(alternating, "symmetric_row_sums", function)
            solved.append(transport(cost, eps=share * cost.mean, symmetric=True))
    return solved


def assert_alike(whole: Transport, triangular: Transport) -> None:
    assert whole.converged and triangular.converged
    assert abs(whole.iterations - triangular.iterations) <= 1
    assert triangular.value == pytest.approx(whole.value, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "held"), [(0.2, torch.int16), (0.05, torch.int16), (0.02, torch.float32)]
)
def test_self_terms_converge_in_as_many_iterations(share, held):
    cost = self_problem(2100)
    calls = []

    def triangular(q, f, g, kappa):
        calls.append(q.dtype)
        return reference.symmetric_row_sums(q, f, g, kappa, tile=triangle._TILE)

    assert_alike(*solutions(cost, share, sweep.row_sums, triangular))
    assert set(calls) == {held}


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize(
    ("n", "tile"), [(2, 64), (64, 64), (65, 64), (300, 64), (16, 16), (61, 16), (80, 16)]
)
def test_interpreted_kernels_equal_float64(n, tile, dtype, monkeypatch):
    monkeypatch.setattr(triangle, "_TILE", tile)
    q, *rest = inputs(n, dtype)
    block = torch.arange(n) // tile
    unread = block[:, None] > block
    filler = 1 << 14 if dtype == torch.int16 else torch.nan
    q[unread] = filler
    doubles = (tensor.double() for tensor in rest)
    expected = reference.symmetric_row_sums(q, *doubles, tile=tile)
    apart = torch.full((n, n + 64), filler, dtype=dtype)[:, :n].copy_(q)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(2).isnan().all()
    for rows in (q, apart, q.T.contiguous().T):
        log_s = triangle._symmetric_row_sums(rows, *rest)
        torch.testing.assert_close(log_s.double(), expected, rtol=2e-5, atol=2e-5)
        assert torch.equal(log_s, triangle._symmetric_row_sums(rows, *rest))
    torch.use_deterministic_algorithms(False)


@interpreted
@pytest.mark.parametrize("share", [0.2, 0.05])
def test_interpreted_self_terms_converge_in_as_many_iterations(share, monkeypatch):
    monkeypatch.setattr(triangle, "_TILE", 16)
    cost = self_problem(60)
    assert_alike(*solutions(cost, share, sweep.row_sums, triangle._symmetric_row_sums))


@interpreted
def test_interpreted_sums_that_overflow_are_not_finite():
    q, f, g, kappa = inputs(20, torch.float32)
    f[3], f[7] = 200.0, torch.nan
    log_s = triangle._symmetric_row_sums(q, f, g, kappa)
    assert not log_s[3].isfinite() and log_s[7].isnan()
