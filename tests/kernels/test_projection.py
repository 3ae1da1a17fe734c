"""Selective projection decay's sums and its drawing back against the formula in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.projection import offset_products_, project_

SIZES = [0, 1, 1023, 1024, 0, 1025, 3000, 7]
LAM = 0.8


def parameters() -> list[list[Tensor]]:
    """theta before a step, its anchor, its gradient and theta after the step, of every size.

    Steps lead back or away, along the gradient or against it.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, size in enumerate(SIZES):
        theta, anchor, noise = torch.randn(3, size, generator=generator)
        grad = (theta - anchor) * (-1) ** (number // 2) + 0.1 * noise
        stepped = theta + (theta - anchor) * (0.3 if number % 3 else -0.3) + 0.1 * noise
        rows.append([theta, anchor, grad, stepped])
    return rows


def truth(rows: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """The sums [3, T] and the parameters drawn back, in float64 by the formula alone."""
    sums, ends = [], []
    for row in rows:
        theta, anchor, grad, stepped = (tensor.double() for tensor in row)
        before, after = (theta - anchor).norm(), (stepped - anchor).norm()
        ascent = (grad * (theta - anchor)).sum()
        sums.append(torch.stack([ascent, before**2, after**2]))
        if ascent > 0 and after > before:
            stepped = stepped - LAM * (after - before) / after * (stepped - anchor)
        ends.append(stepped)
    return torch.stack(sums, 1), ends


def run(rows: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """As `truth`, by the functions under test, into sums that are full of NaN."""
    thetas, anchors, grads, stepped = (list(column) for column in zip(*rows, strict=True))
    ends = [t.clone() for t in stepped]
    sums = torch.full((3, len(rows)), float("nan"), dtype=torch.float64)
    offset_products_(thetas, anchors, grads, out=sums[:2])
    offset_products_(ends, anchors, out=sums[2:])
    project_(ends, anchors, sums, LAM)
    return sums, ends


def assert_equal_to_truth(rows: list[list[Tensor]]) -> None:
    expected_sums, expected = truth(rows)
    sums, ends = run(rows)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-6, atol=1e-5)
    for actual, exact in zip(ends, expected, strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=1e-6)
    drawn = [not torch.equal(end, row[3]) for end, row in zip(ends, rows, strict=True)]
    assert 2 <= sum(drawn) < len(rows) - 2, "this test sees too few of the cases"


def assert_a_nan_spreads() -> None:
    """To its parameter where that is drawn back, and to no other."""
    rows = [[torch.ones(5), torch.zeros(5), torch.ones(5), torch.full((5,), 2.0)] for _ in "ab"]
    rows[0][2][3] = float("nan")
    sums, (unknown, known) = run(rows)
    assert sums.isnan().tolist() == [[True, False], [False] * 2, [False] * 2]
    torch.testing.assert_close(known, torch.full((5,), 1 + 1 - LAM))
    assert torch.equal(unknown, rows[0][3])  # as where the gradient leads away
    infinite = torch.full((3, 2), float("inf"), dtype=torch.float64)
    project_([unknown, known], [row[1] for row in rows], infinite, LAM)
    assert unknown.isnan().all() and known.isnan().all()


def test_sums_and_parameters_equal_float64():
    assert_equal_to_truth(parameters())


def test_a_nan_spreads_to_its_parameter_alone():
    assert_a_nan_spreads()


def test_nothing_is_taken():
    out = torch.empty(3, 0, dtype=torch.float64)
    offset_products_([], [], [], out=out[:2])
    project_([], [], out, LAM)
