"""Sinkhorn's sweep against its twin in float64, the start between classes, and Anderson's
acceleration of maps whose fixed points are known."""

import pytest
import torch

from helpers.children import DEVICE, INTERPRETING, KERNELS, everywhere
from helpers.clouds import D
from helpers.twins import apart, assert_twins
from kernels.transport import alternating, sweep
from kernels.transport.alternating import Anderson
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import transport

DTYPES = pytest.mark.parametrize("dtype", [torch.int16, torch.float32])


def inputs(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-32768, 32767, shape, generator=generator).to(dtype)
    f, g = (torch.randn(size, generator=generator) - 3 for size in shape)
    kappa = 30 / 65536 * (1 + torch.rand(shape[0], generator=generator))
    return q, f, g, kappa, sweep.sinkhorn_sweep(q, f.double(), g.double(), kappa.double())


@everywhere
@DTYPES
@pytest.mark.parametrize("shape", [(2, 3), (16, 512), (37, 517), (50, 2100), (550, 30)])
def test_sweeps_equal_float64(shape, dtype, monkeypatch):
    """Of the kernels; on a CPU of the compiled loop."""
    *tensors, expected = inputs(shape, dtype)
    if not KERNELS:
        pytest.importorskip("numba")
    monkeypatch.setattr(sweep, "_COMPILE_FROM", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    q, *vectors = (tensor.to(DEVICE) for tensor in tensors)
    for rows in (q, apart(q, 1 << 14), q.T.contiguous().T) if KERNELS else (q,):
        if INTERPRETING:
            actual, log_s = sweep._sweep(rows, *vectors), sweep._row_sums(rows, *vectors)[0]
        else:
            actual, log_s = sweep.sinkhorn_sweep(rows, *vectors), sweep.row_sums(rows, *vectors)
        assert_twins([*actual, log_s], [*expected, expected[0]], rtol=3e-5, atol=2e-5)


def test_most_mass_moves_between_classes_before_the_first_sweep(monkeypatch):
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
    started = transport(cost, eps=eps)
    monkeypatch.setattr(alternating, "_BETWEEN_CLASSES", 0)
    plain = transport(cost, eps=eps)
    assert started.value == pytest.approx(plain.value, rel=2e-4)
    assert started.iterations < 0.6 * plain.iterations


def test_a_linear_map_is_solved_in_as_many_steps_as_it_has_eigenvalues():
    """Where the plain iteration shrinks the error by a hundredth a step."""
    values = torch.tensor([0.99, 0.9, -0.5, 0.3], dtype=torch.float64).repeat(5)
    right = torch.linspace(1, 2, 20, dtype=torch.float64)
    anderson, g = Anderson(), torch.zeros(20, dtype=torch.float64)
    for _ in range(6):
        g = anderson.combined(anderson.add(g, values * g + right - g).tolist())
    torch.testing.assert_close(g, right / (1 - values), rtol=1e-6, atol=0)


def test_a_combination_that_lowers_the_dual_gives_way_to_the_plain_image():
    anderson, point = Anderson(), torch.zeros(3, dtype=torch.float64)
    images = []
    for dual in (0.0, 1.0, 2.0):
        step = torch.rand(3, generator=torch.Generator().manual_seed(int(dual))).double()
        images.append(point + step)
        point, rose = anderson.guarded(dual, anderson.add(point, step).tolist())
        assert rose
    point, rose = anderson.guarded(1.0, anderson.add(point, torch.ones(3).double()).tolist())
    assert not rose and torch.equal(point, images[-1])
    for dual in (1.0, float("nan")):  # the history begins anew, and with it the guard
        point, rose = anderson.guarded(dual, anderson.add(point, torch.ones(3).double()).tolist())
        assert rose == (dual == 1.0)
