"""The step of the column potentials: laws of the twin in float64, and the kernels against it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_interpreter import interpreted, run_interpreted

from kernels import reference
from kernels.transport import blocks
from kernels.transport.blocks import block_step

# Bounds of blocks of rows and of columns.
BOUNDS = [
    ([0, 5], [0, 7]),
    ([0, 1, 2, 40], [0, 3, 70]),
    ([0, 3, 9], [0, 1, 2, 3, 300]),
    ([*range(0, 70, 2)], [*range(0, 401, 10)]),
]


def case(rows: list[int], columns: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over blocks of a plan whose rows sum to 1 and whose mass keeps to some blocks."""
    generator = torch.Generator().manual_seed(len(rows))
    of_rows, of_columns = torch.tensor(rows), torch.tensor(columns)
    block = torch.arange(len(columns) - 1).repeat_interleave(of_columns.diff())
    sums = torch.rand(len(rows) - 1, columns[-1], generator=generator).pow(6) + 1e-3
    sums *= (of_rows.diff() / sums.sum(1))[:, None]
    return sums, of_rows, of_columns, block


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_the_step_balances_columns_and_then_blocks(bounds, monkeypatch):
    monkeypatch.setattr(reference, "BLOCK_CHANGE", 1e-13)
    monkeypatch.setattr(reference, "BLOCK_ITERATIONS", 5000)
    sums, of_rows, of_columns, block = case(*bounds)
    sums = sums.double()
    ratio, step = block_step(sums, of_rows, of_columns, block)
    n, m = int(of_rows[-1]), len(block)
    torch.testing.assert_close(ratio, sums.sum(0) * m / n)
    scaled = sums * step.exp()  # before the rows are scaled to their marginals
    scaled *= (of_rows.diff() / scaled.sum(1))[:, None]
    right = of_columns.diff().double() * n / m
    of_blocks = [part.sum() for part in scaled.sum(0).split(of_columns.diff().tolist())]
    torch.testing.assert_close(torch.stack(of_blocks), right, rtol=1e-6, atol=0)
    # Columns of a block are changed alike, after each is made b.
    alike = (step + ratio.log()).split(of_columns.diff().tolist())
    for part in alike:
        torch.testing.assert_close(part, part[:1].expand(len(part)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0])
def test_steps_are_finite_whatever_the_mass(scale):
    sums, *layout = case(*BOUNDS[1])
    for mass in (scale * torch.ones_like(sums), scale * torch.eye(*sums.shape)):
        ratio, step = block_step(mass, *layout)
        assert ratio.min() > 0 and step.isfinite().all()


@pytest.mark.slow
def test_kernels_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_interpreted_kernels_equal_the_twin(bounds):
    sums, *layout = case(*bounds)
    apart = torch.full((len(sums), sums.shape[1] + 5), torch.nan)[:, : sums.shape[1]].copy_(sums)
    expected = reference.block_step(sums, *layout)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(2).isnan().all()
    for columns in (sums, apart):
        for actual, exact in zip(blocks._block_step(columns, *layout), expected, strict=True):
            torch.testing.assert_close(actual, exact, rtol=1e-5, atol=1e-5)
    torch.use_deterministic_algorithms(False)


@interpreted
@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_interpreted_kernels_survive_no_mass(scale):
    sums, *layout = case(*BOUNDS[1])
    ratio, step = blocks._block_step(scale * torch.eye(*sums.shape), *layout)
    assert ratio.min() > 0 and step.isfinite().all()
