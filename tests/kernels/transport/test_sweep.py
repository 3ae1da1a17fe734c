"""Sinkhorn's sweep against its twin in float64, and what its sums by blocks are for."""

from __future__ import annotations

import pytest
import torch
from clouds import CLASSES, D, labelled, problem
from triton_interpreter import interpreted, run_interpreted

from kernels import reference
from kernels.transport import alternating, sweep
from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import transport
from kernels.transport.store import store


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
