"""Costs of some rows in float32 on a GPU: one matrix multiplication, with the cost in its epilogue.

    C_ij = max(||x_i||^2 + ||y_j||^2 - 2 x_i y_j + T[label x_i, label y_j], 0)

A library's products, added up in blocks of 64 dimensions as `GroundCost.rounding` asks, read and
write a strip of the costs once a block; the other terms are operators of their own, and the host
waits for the number of classes. Here a program keeps a tile of costs in registers while the
dimensions pass, and writes it once. Features lie by dimension, so that neighbours in memory are
neighbours in the tile, and accesses are 16 bytes wide.

Products are float32's fused multiply-adds, whatever precision torch is allowed. Those of a block
are chained, which rounds at most 64 times, and the block is added to those before: no more than
`GroundCost.rounding` counts. Triton turns a sum plus a `tl.dot` that starts from zero into a chain
from that sum, which would break the bound. Here the loop carries the sum of a block, which Triton
leaves alone; `sums_blocks` tries out what was compiled.

Three products in TF32 for each would take 0.4 of the time (495 TFLOP/s), but no bound of theirs is
small enough. In units u = 2^-24 of |x_k y_k|, a number is split into 11 bits, rounded, and 11 bits
that are cut: 2 * 8 + 4 = 20 are left out. How tensor cores round sums is not documented. If they
cut what they add to the 24 bits of the largest, a step of 8 products is off by 16 of its sum, and
the 8 steps of a block by 128. At 768 dimensions that makes 188, where `GroundCost.rounding` counts
104. At a tolerance of 1e-4 a copy may be off by 2.5e-5 of the mean cost (`sinkhorn._copy`), 419 u,
of which half a step of 16 bits takes 256: 163 are left, and iterations would read 32-bit costs,
twice the bytes. With one bit more it would be 124, but nobody promises that bit.

Predicted, not measured, for 50,000 x 50,000 samples of 768 dimensions on an H100 (67 TFLOP/s, 3.0
TB/s), until the 16 bits are stored. Before: 98 strips of some 20 launches and a wait each; products
move 92 bytes a cost (77 ms; their 3.8 TFLOP take 57 ms), what follows 10 to 14 (8 to 12 ms): at
least 85 ms. Now: 79 strips of 9 launches without a wait; 57 ms of arithmetic, and 6 to 10 bytes a
cost in `quantize` (5 to 8 ms): 62 to 65 ms at the peak. Of the instructions of the compiled loop
83% multiply (Triton 3.9, both GPUs of `kernels.aot`), which makes 74 to 77 ms; below 75% of the
peak the kernel would lose to a library that reaches all of its bandwidth.

Source: Fasi, Higham, Mikaitis & Pranesh 2021 (experiments on how tensor cores add).
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels.launch import jit, launcher, padded, tl

INNER = 64  # dimensions multiplied in float32 before the sum is added to the others
ROWS = 128  # of a tile
_COLUMNS = 128
# Dimensions of a `tl.dot`, and how many of these a turn of the loop takes. Where one took 32, the
# registers of an A100 would spill; where a turn took one, it would be tested for the end of a block
# twice as often, and 78% of the instructions would multiply (Triton 3.9).
_STEP, _STEPS = 16, 2
_STAGES = 3
_WARPS = 8


def by_dimension(features: Tensor) -> Tensor:
    """Features [n, d] as `cost_rows` reads them: float32 [d, n], whose rows may lie apart."""
    n, d = features.shape
    return padded((d, n), features, torch.float32).copy_(features.T)


def sums_blocks(device: torch.device) -> bool:
    """Whether the compiled kernel multiplies in float32, and sums a block before it adds it."""
    # 18 bits, and sums of 24: a product of fewer bits, or one that rounds them, would show.
    number = 1 + 2.0**-17
    x = torch.zeros(2, 2 * INNER, device=device)
    x[:, INNER:] = number
    x[1, 0] = 2.0**24  # to which each product, added alone, would be rounded up to 2
    y = torch.full((2, 2 * INNER), -0.5, device=device)
    nothing = torch.zeros(2, dtype=torch.float64, device=device)
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    rest = by_dimension(x), by_dimension(y), nothing, nothing, labels, labels
    expected = torch.tensor([INNER * number, 2.0**24 + INNER], device=device)
    # Costs with label terms are a kernel of their own.
    tables = None, nothing[:1, None]
    costs = [cost_rows(*rest, table) for table in tables]
    return bool((torch.stack(costs) == expected[:, None]).all())


@jit(do_not_specialize=["n", "m", "d", "classes"])
def _cost_rows_kernel(
    x, y, x_squares, y_squares, x_labels, y_labels, table, costs,
    x_pitch, y_pitch, pitch, n, m, d, classes,
    LABELLED: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile a program. Masks end at pitches, which are multiples of 16, so that accesses stay
    wide. What lies between rows of x becomes rows that are not stored; what lies between rows of y
    is stored between rows of the costs, where nobody reads it."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = (row < x_pitch)[None, :], (column < y_pitch)[None, :]
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    product = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    # Blocks and their steps in one loop, whose loads then run ahead over the end of a block.
    for start in tl.range(0, d, STEPS * STEP, num_stages=STAGES):
        for step in tl.static_range(STEPS):
            k = (start + step * STEP + tl.arange(0, STEP)).to(tl.int64)[:, None]
            a = tl.load(x + k * x_pitch + row[None, :], mask=(k < d) & in_rows, other=0.0)
            b = tl.load(y + k * y_pitch + column[None, :], mask=(k < d) & in_columns, other=0.0)
            product = tl.dot(tl.trans(a), b, product, input_precision="ieee")
        if (start + STEPS * STEP) % INNER == 0:
            total += product
            product = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    total += product
    term = tl.load(x_squares + row, mask=row < n, other=0.0).to(tl.float32)[:, None]
    terms = tl.load(y_squares + column, mask=column < m, other=0.0).to(tl.float32)[None, :]
    if LABELLED:
        # Places of 32 bits: with 64, older versions of Triton spill twice as many registers.
        of_row = tl.load(x_labels + row, mask=row < n, other=0).to(tl.int32)[:, None]
        of_column = tl.load(y_labels + column, mask=column < m, other=0).to(tl.int32)[None, :]
        terms += tl.load(table + of_row * classes + of_column).to(tl.float32)
    cost = tl.maximum((terms + term) - 2.0 * total, 0.0)
    into = costs + row.to(tl.int64)[:, None] * pitch + column[None, :]
    tl.store(into, cost, mask=(row < n)[:, None] & (column < pitch)[None, :])


def _constants(labelled: bool) -> dict[str, Any]:
    tile = {"ROWS": ROWS, "COLUMNS": _COLUMNS, "STAGES": _STAGES}
    steps = {"INNER": INNER, "STEP": _STEP, "STEPS": _STEPS}
    return {"LABELLED": labelled, **steps, **tile}


@triton_op("rib::cost_rows", mutates_args=())
def cost_rows(
    x: Tensor,
    y: Tensor,
    x_squares: Tensor,
    y_squares: Tensor,
    x_labels: Tensor,
    y_labels: Tensor,
    table: Tensor | None,
) -> Tensor:
    """Costs, float32 [n, m], whose rows lie a multiple of 64 numbers apart. For CUDA tensors.

    x, y: float32 [d, n] and [d, m], as `by_dimension` gives them; x_squares, y_squares: float64
    [n], [m], squares of lengths; x_labels, y_labels: int64 [n], [m]; table: float64 [Kx, Ky], what
    a pair of labels adds, contiguous and of fewer than 2^31 numbers, or None.
    """
    assert table is None or (table.is_contiguous() and table.numel() < 1 << 31), "see `table`"
    (d, n), m = x.shape, y.shape[1]
    costs = padded((n, m), x, torch.float32)
    added = y_squares if table is None else table
    tensors = x, y, x_squares, y_squares, x_labels, y_labels, added, costs
    pitches = x.stride(0), y.stride(0), costs.stride(0)
    launcher(_cost_rows_kernel)[(-(-n // ROWS), -(-m // _COLUMNS))](
        *tensors,
        *pitches,
        *(n, m, d, added.shape[-1]),
        **_constants(table is not None),
        num_warps=_WARPS,
    )
    return costs


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    kinds = dict.fromkeys(("x", "y", "costs"), "*fp32")
    kinds |= dict.fromkeys(("x_squares", "y_squares", "table"), "*fp64")
    kinds |= dict.fromkeys(("x_labels", "y_labels"), "*i64")
    kinds |= dict.fromkeys(("x_pitch", "y_pitch", "pitch", "n", "m", "d", "classes"), "i32")
    return [
        {
            "name": f"cost_rows{' with labels' if labelled else ''}",
            "fn": _cost_rows_kernel,
            "signature": kinds,
            "constexprs": _constants(labelled),
            "num_warps": _WARPS,
            "bytes_per_element": None,
            "streams": (2, 1),
        }
        for labelled in (False, True)
    ]
