"""Costs of a GPU's strip against float64, within the bound that certificates rely on."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from clouds import dense
from launches import counted
from torch import Tensor
from triton_interpreter import INTERPRETING, interpreted, run_interpreted

pytest.importorskip("triton")
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import launch, reference
from kernels.launch import tl
from kernels.transport import cost_rows as module
from kernels.transport import quantize
from kernels.transport import store as stored_copy
from kernels.transport.cost import GroundCost
from kernels.transport.cost_rows import INNER, by_dimension, cost_rows, sums_blocks
from kernels.transport.store import COARSE, SINGLE, beside_the_copy, store

SHAPES = [(2, 3, 1), (128, 128, 64), (5, 130, 65), (150, 131, 40), (131, 300, 200), (7, 64, 768)]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """CPU tensors take the kernels; rows lie apart, and fresh memory is NaN."""
    monkeypatch.setattr(GroundCost, "by_kernel", True)
    monkeypatch.setattr(stored_copy, "quantize_costs", quantize._quantize)
    monkeypatch.setattr(launch, "row_pitch", lambda columns, _: -(-columns // 64) * 64)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def ground(n: int, m: int, d: int, *, classes: int = 0, offset: float = 0.5) -> GroundCost:
    generator = torch.Generator().manual_seed(n * m + d)
    x, y = (torch.randn(size, d, generator=generator) for size in (n, m))
    if not classes:
        return GroundCost(x, y + offset)
    labels = [torch.randint(classes, (size,), generator=generator) for size in (n, m)]
    table = 5 * torch.rand(classes, classes + 2, generator=generator)
    return GroundCost(x, y + offset, labels_x=labels[0], labels_y=labels[1], table=table)


def off(costs: Tensor, cost: GroundCost) -> float:
    """How far costs are off at most, as a share of what `GroundCost.rounding` allows them."""
    assert costs.shape == cost.shape and costs.dtype == torch.float32
    norms = cost.x.squares[:, None] + cost.y.squares
    count = INNER + 2 + 2 + 2 * -(-cost.x.x.shape[1] // INNER) + 12
    allowed = count * norms + (0.0 if cost.table is None else 4 * cost.table.amax())
    return float(((costs.double() - dense(cost)).abs() / (1.01 * 2.0**-24 * allowed)).amax())


@pytest.mark.slow
def test_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("classes", [0, 1, 6, 40])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted_costs_are_within_the_bound(shape, classes, as_on_a_gpu):
    cost = ground(*shape, classes=classes)
    costs = cost.rows(0, shape[0], dtype=torch.float32)
    assert costs.stride(0) % 64 == 0 and (costs >= 0).all()
    assert off(costs, cost) <= 1
    x, y = by_dimension(cost.x.x), by_dimension(cost.y.x)
    terms = cost.x.squares, cost.y.squares, cost.x.labels, cost.y.labels, cost.table
    truth = reference.cost_rows(x, y, *terms)
    torch.testing.assert_close(costs.double(), truth, rtol=1e-5, atol=1e-5 * cost.mean)
    start = shape[0] // 2
    torch.testing.assert_close(cost.rows(start, shape[0], dtype=torch.float32), costs[start:])
    # A wrong term, or one less dimension, is far outside.
    assert off(costs + 1e-4 * cost.mean, cost) > 1


@interpreted
def test_interpreted_costs_of_equal_samples_are_not_negative(as_on_a_gpu):
    x = 1e3 + torch.randn(20, 70, generator=torch.Generator().manual_seed(0))
    cost = GroundCost(x, x)
    costs = cost.rows(0, 20, dtype=torch.float32)
    assert (costs >= 0).all() and off(costs, cost) <= 1


def in_blocks(x: Tensor, y: Tensor, *_: Tensor | None) -> Tensor:
    """As the kernel adds up; x and y as `by_dimension` gives them."""
    blocks = zip(x.split(INNER), y.split(INNER), strict=True)
    return -2 * sum(a.T @ b for a, b in blocks)


def product_by_product(x: Tensor, y: Tensor, *_: Tensor | None) -> Tensor:
    total = torch.zeros(x.shape[1], y.shape[1])
    for a, b in zip(x, y, strict=True):
        total += a[:, None] * b
    return -2 * total


def in_fewer_bits(x: Tensor, y: Tensor, *_: Tensor | None) -> Tensor:
    return in_blocks(x.bfloat16().float(), y)


def test_the_trial_tells_what_the_bound_needs(monkeypatch):
    for kernel, right in ((in_blocks, True), (product_by_product, False), (in_fewer_bits, False)):
        monkeypatch.setattr(module, "cost_rows", kernel)
        assert sums_blocks(torch.device("cpu")) is right


@interpreted
def test_interpreted_trial_passes(as_on_a_gpu):
    assert sums_blocks(torch.device("cpu"))


@interpreted
@pytest.mark.parametrize("copy", [COARSE, SINGLE])
@pytest.mark.parametrize("classes", [0, 6])
def test_interpreted_copies_are_those_of_the_cpu(classes, copy, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(stored_copy, "STRIP_ROWS", 48)
    cost = ground(90, 150, 70, classes=classes)  # two strips
    with counted() as counts:
        stored = store(cost, copy=copy)
    assert counts.launches["_cost_rows_kernel"] == 4  # of which two try it out
    streamed = store(cost, copy=copy, memory=beside_the_copy(cost))
    assert stored.q is not None and streamed.q is None
    assert torch.equal(torch.cat([q for _, q in streamed.parts()]), stored.q)
    monkeypatch.setattr(GroundCost, "by_kernel", False)
    expected = store(cost, copy=copy)
    held, exact = (s.offset[:, None] + s.step[:, None] * s.q for s in (stored, expected))
    steps = 2 * stored.step[:, None] if copy is COARSE else 0.0
    assert ((held - exact).abs() <= steps + 2e-6 * cost.mean).all()
    assert stored.slack == pytest.approx(expected.slack, rel=1e-4)


@interpreted
def test_interpreted_offsets_beyond_two_to_the_31(tmp_path):
    pitch, n = 1 << 30, 3
    sparse = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * pitch + 256)
    x = sparse.as_strided((3, n), (pitch, 1))
    x.copy_(torch.arange(9.0).view(3, n))
    squares, labels = x.double().square().sum(0), torch.zeros(n, dtype=torch.int64)
    terms = squares, squares, labels, labels, None
    assert torch.equal(cost_rows(x, x, *terms).double(), reference.cost_rows(x, x, *terms))


@launch.jit
def _fused_kernel(x, y, out, d, STEP: tl.constexpr, SIZE: tl.constexpr):
    at, inner = tl.arange(0, SIZE), tl.arange(0, STEP)
    total = tl.zeros([SIZE, SIZE], dtype=tl.float32)
    for start in range(0, d, STEP):
        k = (start + inner)[:, None] * SIZE + at[None, :]
        total += tl.dot(tl.trans(tl.load(x + k)), tl.load(y + k), input_precision="ieee")
    tl.store(out + at[:, None] * SIZE + at[None, :], total)


def tile_additions(spec: dict[str, Any]) -> int:
    """How often whole tiles are added in what Triton makes of a kernel."""
    fn = spec["fn"]
    signature = {name: spec["signature"].get(name, "constexpr") for name in fn.arg_names}
    source = ASTSource(fn, signature, constexprs=spec["constexprs"])
    options = {"num_warps": spec["num_warps"]}
    built = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options=options)
    return len(re.findall(r"arith\.addf .*tensor<128x128xf32>", built.asm["ttir"]))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="interpreted kernels are not compiled")
def test_the_compiler_leaves_the_sum_of_a_block_apart():
    """A block's sum, the last block's and a cost's terms are added; a plain loop adds nothing."""
    assert [tile_additions(spec) for spec in module.specializations()] == [3, 4]
    kinds = dict.fromkeys(("x", "y", "out"), "*fp32") | {"d": "i32"}
    constants = {"STEP": 32, "SIZE": 128}
    plain = {"fn": _fused_kernel, "signature": kinds, "constexprs": constants, "num_warps": 8}
    assert tile_additions(plain) == 0
