"""Squared per-example gradients of a linear layer, against float64."""

from __future__ import annotations

import pytest
import torch
from launches import counted
from torch import Tensor
from triton_interpreter import interpreted, run_interpreted

from kernels import reference
from kernels.fisher import outer_squares as outer
from kernels.fisher.outer_squares import outer_squares


def assert_close_to_max(result: Tensor, truth: Tensor, name: str = "", tolerance=1e-5) -> None:
    assert result.shape == truth.shape, name
    if truth.numel():
        assert (result.double() - truth).abs().max() <= tolerance * truth.abs().max(), name


def operands(batch: int, tokens: int, outputs: int, inputs: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch + tokens)
    g = torch.randn(batch, tokens, outputs, generator=generator).to(dtype)
    return g, torch.randn(batch, tokens, inputs, generator=generator).to(dtype)


@pytest.mark.parametrize("shape", [(3, 1, 5, 7), (4, 9, 33, 17), (0, 3, 2, 2), (2, 0, 3, 4)])
def test_outer_squares_on_the_cpu(shape, monkeypatch):
    monkeypatch.setattr(outer, "_CPU_TILE", 100)
    g, x = operands(*shape)
    truth = reference.outer_squares(g, x)
    result = outer_squares(g, x)
    assert_close_to_max(result, truth)
    low = outer_squares(g.half(), x.half())
    assert low.dtype == torch.float32
    assert_close_to_max(low, reference.outer_squares(g.half(), x.half()))
    with pytest.raises(ValueError, match="must be"):
        outer_squares(g, x.double())


@pytest.mark.skipif(outer.tl is None, reason="needs triton")
def test_float32_products_are_tf32_only_where_torch_allows_it(monkeypatch):
    expected = {("highest", torch.float32): "tf32x3", ("high", torch.float32): "tf32"}
    expected |= {("highest", torch.bfloat16): "tf32"}  # this holds for float32 alone
    for (setting, dtype), precision in expected.items():
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda setting=setting: setting)
        with counted(run=False) as counts:
            outer._outer_squares_cuda(*operands(2, 3, 4, 5, dtype))
        ((_, _, options),) = counts.seen
        assert options["PRECISION"] == precision


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 17, 130, 70), (2, 33, 5, 129), (7, 4, 64, 64), (0, 2, 3, 4)]
)
def test_interpreted_kernel_equals_float64(shape, dtype, monkeypatch):
    torch.use_deterministic_algorithms(True)
    assert torch.empty(2).isnan().all()
    monkeypatch.setattr(outer, "_PROGRAMS", 5)
    g, x = operands(*shape, dtype)
    # Positions innermost, as convolutions have them, in a view that starts off alignment.
    g_conv = torch.empty(g.numel() + 1, dtype=dtype)[1:].view(g.mT.shape).copy_(g.mT).mT
    truth = reference.outer_squares(g, x)
    for gradients in (g, g_conv):
        result = outer._outer_squares_cuda(gradients, x)
        assert_close_to_max(result, truth)
    torch.use_deterministic_algorithms(False)


@interpreted
def test_interpreted_kernel_survives_values_that_overflow_fp16():
    g, x = operands(2, 5, 8, 8, torch.float16)
    g, x = g * 200, x * 200
    truth = reference.outer_squares(g, x)
    result = outer._outer_squares_cuda(g, x)
    assert truth.max() > 65504
    assert_close_to_max(result, truth)
