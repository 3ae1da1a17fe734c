"""How much an iteration asks of the host: its launches and its waits, counted."""

import pytest
import torch

from helpers.children import interpreted
from helpers.launches import counted

pytest.importorskip("triton")
from helpers.clouds import problem, self_problem
from kernels.transport import alternating, sweep
from kernels.transport.store import store


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("n", [70, 3000])
def test_a_sweep_is_three_launches(dtype, n):
    q = torch.zeros(n, n, dtype=dtype)
    f, g, kappa = torch.zeros(3, n)
    with counted(run=False) as counts:
        log_s, columns = sweep._sweep(q, f, g, kappa)
    assert (log_s.shape, columns.shape) == ((n,), (n,))
    assert counts.total == 3 and not counts.waits
    with counted(run=False) as counts:
        sweep._row_sums(q, f, g, kappa)
    assert counts.total == 1 and not counts.waits


@interpreted
@pytest.mark.parametrize(("symmetric", "most"), [(False, 19), (True, 10)])
def test_interpreted_iterations_are_few_launches_and_one_wait(symmetric, most, monkeypatch):
    """CPU tensors take the kernels. On a GPU an iteration of a pair is one launch more: Anderson's
    weights are copied there."""
    monkeypatch.setattr(alternating, "sinkhorn_sweep", sweep._sweep)
    monkeypatch.setattr(alternating, "row_sums", lambda *inputs: sweep._row_sums(*inputs)[0])
    stored = store(self_problem(60) if symmetric else problem(60, 50), torch.float32)
    eps = 0.05 * stored.cost.mean
    counts = []
    for iterations in (12, 13):
        potentials = alternating.Potentials(stored, symmetric=symmetric, max_iterations=iterations)
        with counted() as count:
            potentials.solve(eps, 1e-12)
        assert potentials.exhausted
        counts.append(count)
    fewer, more = counts
    assert 3 <= more.total - fewer.total <= most, more.launches - fewer.launches
    assert more.waits.total() - fewer.waits.total() == 1, more.waits - fewer.waits
