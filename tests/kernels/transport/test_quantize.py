"""16-bit costs from a product are within half a step of float64: compiled loop and kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_interpreter import interpreted, run_interpreted

from kernels import reference
from kernels.transport import quantize as module
from kernels.transport.quantize import _quantize, quantize, quantize_costs

SHAPES = [(2, 1, 1), (3, 5, 2), (17, 2049, 3), (4, 4096, 1)]


def strip(n: int, m: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * m)
    product = 3 * torch.randn(n, m, generator=generator)
    row_term = 5 * torch.rand(n, generator=generator)
    column_terms = 5 * torch.rand(k, m, generator=generator)
    return product, row_term, column_terms, torch.randint(0, k, (n,), generator=generator)


def finished(product: Tensor, row_term: Tensor, column_terms: Tensor, which: Tensor) -> Tensor:
    return (product + (column_terms[which] + row_term[:, None])).clamp(min=0.0)


def check(packed: list[Tensor] | tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
    """Against the formula, and against the twin in float64."""
    product, row_term, column_terms, which = inputs
    cost = (product.double() + column_terms.double()[which] + row_term.double()[:, None]).clamp(
        min=0.0
    )
    q, low, step = packed
    assert (q.dtype, low.dtype, step.dtype) == (torch.int16, torch.float32, torch.float32)
    restored = low.double()[:, None] + step.double()[:, None] * (q.double() + 32768)
    assert ((restored - cost).abs() <= 0.52 * step[:, None] + 1e-6 * cost.amax()).all()
    twin = reference.quantize(product.double(), row_term.double(), column_terms.double(), which)
    torch.testing.assert_close(low.double(), twin[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(step.double(), twin[2], rtol=1e-4, atol=1e-9)
    if product.shape[1] > 1:  # a row of one cost is rounding, in steps of almost nothing
        assert ((q.int() - twin[0].int()).abs() <= 2).all()


@pytest.mark.parametrize("least", [0, 1 << 40])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_the_cpu(shape, least, monkeypatch):
    if not least:
        pytest.importorskip("numba")
    monkeypatch.setattr(module, "_COMPILE_FROM", least)
    product, *terms = strip(*shape)
    q = torch.empty(shape[:2], dtype=torch.int16)
    check((q, *quantize(product.clone(), *terms, q)), (product, *terms))
    q = torch.empty_like(q)
    check((q, *quantize_costs(finished(product, *terms), q)), (product, *terms))


@pytest.mark.slow
def test_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted_kernel(shape):
    inputs = strip(*shape)
    cost = finished(*inputs)
    n, m = cost.shape
    q = torch.empty(cost.shape, dtype=torch.int16)
    check((q, *_quantize(cost, q)), inputs)
    apart = torch.full((n, m + 64), torch.nan)
    apart[:, :m] = cost
    wider = torch.full((n, m + 64), 77, dtype=torch.int16)
    check((wider[:, :m], *_quantize(apart[:, :m], wider[:, :m])), inputs)
    assert torch.equal(wider[:, :m], q) and (wider[:, m:] == 77).all()
