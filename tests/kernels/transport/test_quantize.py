"""16-bit costs from a product are within half a step of float64: compiled loop and kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_interpreter import interpreted, run_interpreted

from kernels.transport.quantize import _quantize, quantize

SHAPES = [(2, 1, 1), (3, 5, 2), (17, 2049, 3), (4, 4096, 1)]


def strip(n: int, m: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * m)
    product = 3 * torch.randn(n, m, generator=generator)
    own = 5 * torch.rand(n, generator=generator)
    others = 5 * torch.rand(k, m, generator=generator)
    return product, own, others, torch.randint(0, k, (n,), generator=generator)


def check(found: list[Tensor] | tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
    product, own, others, which = inputs
    cost = (product.double() + others.double()[which] + own.double()[:, None]).clamp(min=0.0)
    q, low, step = found
    assert (q.dtype, low.dtype, step.dtype) == (torch.int16, torch.float32, torch.float32)
    held = low.double()[:, None] + step.double()[:, None] * (q.double() + 32768)
    assert ((held - cost).abs() <= 0.52 * step[:, None] + 1e-6 * cost.amax()).all()
    torch.testing.assert_close(low.double(), cost.amin(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_compiled_loop(shape):
    pytest.importorskip("numba")
    product, *rest = strip(*shape)
    check(quantize(product.clone(), *rest), (product, *rest))


@pytest.mark.slow
def test_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted_kernel(shape):
    inputs = strip(*shape)
    check(_quantize(*inputs), inputs)
