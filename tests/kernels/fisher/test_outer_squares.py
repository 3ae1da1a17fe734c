"""Squared per-example gradients of a linear layer, against float64."""

from __future__ import annotations

import pytest
import torch
from twins import assert_close_to_max

from kernels import reference
from kernels.fisher import outer_squares as outer
from kernels.fisher.outer_squares import outer_squares


def operands(batch: int, tokens: int, outputs: int, inputs: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch + tokens)
    g = torch.randn(batch, tokens, outputs, generator=generator).to(dtype)
    return g, torch.randn(batch, tokens, inputs, generator=generator).to(dtype)


@pytest.mark.parametrize("held", [1, 100, 1000])
@pytest.mark.parametrize(
    "shape", [(3, 1, 5, 7), (4, 9, 33, 17), (7, 4, 6, 8), (0, 3, 2, 2), (2, 0, 3, 4), (2, 3, 0, 4)]
)
def test_outer_squares_equal_float64(shape, held, monkeypatch):
    monkeypatch.setitem(outer._NUMBERS, "cpu", held)
    g, x = operands(*shape)
    g = g.mT.contiguous().mT  # positions innermost, as convolutions have them
    assert_close_to_max(outer_squares(g, x), reference.outer_squares(g, x))
    low = outer_squares(g.half(), x.half())
    assert low.dtype == torch.float32
    assert_close_to_max(low, reference.outer_squares(g.half(), x.half()))
    with pytest.raises(ValueError, match="must be"):
        outer_squares(g, x.double())


def test_values_that_overflow_fp16_do_not():
    g, x = (200 * t for t in operands(2, 5, 8, 8, torch.float16))
    truth = reference.outer_squares(g, x)
    assert truth.max() > 65504
    assert_close_to_max(outer_squares(g, x), truth)
