"""The three numbers that the host reads of an iteration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from triton_interpreter import interpreted, run_interpreted

from kernels import reference
from kernels.transport import progress as module
from kernels.transport.progress import progress


def case(n: int, m: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    f, log_s = torch.randn(2, n, generator=generator).double()
    g, ratio = torch.randn(2, m, generator=generator).double() + 1
    return f, g, log_s.float(), ratio


def check(actual: Tensor, f: Tensor, g: Tensor, log_s: Tensor, ratio: Tensor) -> None:
    largest = max(abs(x) for x in log_s.tolist())
    dual = math.fsum(f.tolist()) / len(f) + math.fsum(g.tolist()) / len(g)
    off = math.fsum(abs(r - 1) for r in ratio.tolist()) / len(g)
    assert actual.tolist() == pytest.approx([largest, dual, off], rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (70, 5000)])
def test_on_the_cpu(shape):
    inputs = case(*shape)
    check(progress(*inputs), *inputs)


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("shape", [(1, 1), (70, 5000), (4096, 8193)])
def test_interpreted_kernel(shape):
    inputs = case(*shape)
    check(module._progress(*inputs), *inputs)


@interpreted
@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_interpreted_kernel_tells_sums_that_overflowed(unknown):
    f, g, log_s, ratio = case(70, 80)
    log_s[33] = unknown
    for sums in (module._progress(f, g, log_s, ratio), reference.progress(f, g, log_s, ratio)):
        assert not sums[0] < 1e30
