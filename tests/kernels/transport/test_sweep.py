"""Sinkhorn's sweep against its twin in float64, and what its sums by blocks are for."""

from __future__ import annotations

import pytest
import torch
from clouds import CLASSES, D, labelled
from triton_interpreter import interpreted, run_interpreted

from kernels import reference
from kernels.transport import alternating, sweep
from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import transport


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
    results = sweep.sinkhorn_sweep(q, f, g, kappa, bounds)
    for actual, exact, atol in zip(results, expected, (2e-5, 1e-8), strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=3e-5, atol=atol)
    log_s = sweep.row_sums(q, f, g, kappa)
    torch.testing.assert_close(log_s.double(), expected[0], rtol=3e-5, atol=2e-5)
    monkeypatch.setattr(sweep, "_COMPILE_FROM", 1 << 40)
    torch.testing.assert_close(sweep.row_sums(q, f, g, kappa), log_s, rtol=3e-5, atol=2e-5)


def usual_step(columns, of_rows, *_):
    n, m = int(of_rows[-1]), columns.shape[1]
    ratio = columns.sum(0, dtype=torch.float64) * m / n
    return ratio, -ratio.log()


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
    two_levels = transport(cost, eps=eps)
    monkeypatch.setattr(alternating, "block_step", usual_step)
    plain = transport(cost, eps=eps)
    assert two_levels.value == pytest.approx(plain.value, rel=2e-4)
    assert two_levels.iterations < plain.iterations / 2


def test_a_self_term_sums_rows_until_it_has_converged(monkeypatch):
    calls, sweep_of, rows_of = [], alternating.sinkhorn_sweep, alternating.symmetric_row_sums

    def sweeps(*inputs):
        log_s, columns = sweep_of(*inputs)
        calls.append(len(columns))
        return log_s, columns

    def rows(*inputs):
        calls.append(0)
        return rows_of(*inputs)

    monkeypatch.setattr(alternating, "sinkhorn_sweep", sweeps)
    monkeypatch.setattr(alternating, "symmetric_row_sums", rows)
    x, labels = labelled(60, 0)
    table = bures_squared(class_gaussians(x, labels, CLASSES))
    cost = GroundCost(x, x, labels_x=labels, labels_y=labels, table=table)
    assert transport(cost, eps=cost.mean / 20, symmetric=True).converged
    *before, last = calls
    assert len(before) > 2 and not any(before) and last == 1, "one sweep, for the certificate"
    transport(cost, eps=cost.mean / 20)
    assert calls[-1] == CLASSES


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3), (16, 512), (37, 517), (50, 2100)])
def test_interpreted_kernels_equal_float64(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-32768, 32767, shape, generator=generator).to(dtype)
    f, g = (torch.randn(size, generator=generator) - 3 for size in shape)
    kappa = 30 / 65536 * (1 + torch.rand(shape[0], generator=generator))
    bounds = torch.tensor(sorted({0, 1, shape[0] // 2 + 1, shape[0]}))
    expected = reference.sinkhorn_sweep(q, f.double(), g.double(), kappa.double(), bounds)
    apart = torch.full((shape[0], shape[1] + 64), 1 << 14, dtype=dtype)[:, : shape[1]].copy_(q)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(2).isnan().all()
    for rows in (q, apart, q.T.contiguous().T):
        for actual, exact in zip(sweep._sweep(rows, f, g, kappa, bounds), expected, strict=True):
            torch.testing.assert_close(actual.double(), exact, rtol=2e-5, atol=2e-5)
        log_s, shares = sweep._row_sums(rows, f, g, kappa)
        torch.testing.assert_close(log_s.double(), expected[0], rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(shares, f - log_s)
    torch.use_deterministic_algorithms(False)
