"""Squared per-example gradients of a linear layer, against float64."""

from __future__ import annotations

import pytest
import torch
from twins import assert_close_to_max

from kernels import reference
from kernels.fisher import outer_squares as outer
from kernels.fisher.outer_squares import outer_squares

SHAPES = [(3, 1, 5, 7), (4, 9, 33, 17), (7, 4, 6, 8), (0, 3, 2, 2), (2, 0, 3, 4), (2, 3, 0, 4)]


@pytest.mark.parametrize("held", [1, 100, 1000])
@pytest.mark.parametrize(("batch", "tokens", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_outer_squares_equal_float64(batch, tokens, outputs, inputs, held, dtype, monkeypatch):
    monkeypatch.setitem(outer._NUMBERS, "cpu", held)
    generator = torch.Generator().manual_seed(batch + tokens)
    g = 200 * torch.randn(batch, tokens, outputs, generator=generator)  # squares overflow fp16
    g = g.to(dtype).mT.contiguous().mT  # positions innermost, as convolutions have them
    x = 200 * torch.randn(batch, tokens, inputs, generator=generator).to(dtype)
    actual = outer_squares(g, x)
    assert actual.dtype == torch.float32
    assert_close_to_max(actual, reference.outer_squares(g, x))
    with pytest.raises(ValueError, match="must be"):
        outer_squares(g, x.double())
