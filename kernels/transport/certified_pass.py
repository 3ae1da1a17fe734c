"""The float64 pass of a certificate over the stored cost, on a GPU.

With C_ij = offset_i + step_i q_ij, u_ij = C_ij - g_j and its row's minimum low_i:

    s_i = sum_j p_ij,  p_ij = exp((low_i - u_ij) / eps)      f_i = low_i - eps log(s_i / m)
    sums over a row of p_ij kept_j and of p_ij kept_j u_ij, and over a column of p_ij, times m / s_i
    hard_g_j = min_i (C_ij - low_i)

As operators of PyTorch that is a dozen passes over a float64 strip, about 160 bytes a cost. Here it
is two launches, as a sweep's (`sweep`): a program takes a row twice, for its minimum and for its
sums, then others add the columns of some rows up, whose partial sums two more operators reduce.
There are no atomics, and so the same sums every time. Bytes moved: at least 4 n m (8 n m for a
float32 copy); float64 arithmetic, two exponentials a cost, is the bound.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels.launch import jit, launcher, rows_apart, tl

_ADDED_ROWS = 1024  # rows that a program adds up
_ROWS = 4
_COLUMNS = 256
_ROW_BLOCK = 1024
_WARPS = 4


@jit
def _reduced(line, g, at, m, base, scale, MASKED: tl.constexpr):
    """Costs less g; infinite beyond the row."""
    if MASKED:
        price = tl.load(g + at, mask=at < m, other=float("-inf"))
        cost = tl.load(line + at, mask=at < m, other=0)
    else:
        price = tl.load(g + at)
        cost = tl.load(line + at)
    return base + scale * cost.to(tl.float64) - price


@jit(do_not_specialize=["m"])
def _rows_kernel(
    q,
    offset,
    step,
    g,
    retained,
    scales,
    f,
    low,
    weights,
    retained_rows,
    reduced,
    pitch,
    m,
    ROW_BLOCK: tl.constexpr,
):
    """A row a program. scales: eps and 1 / eps, which as arguments would be rounded to float32."""
    row = tl.program_id(0)
    line = q + row.to(tl.int64) * pitch
    inverse = tl.load(scales + 1)
    base = tl.load(offset + row)
    scale = tl.load(step + row)
    whole = m // ROW_BLOCK * ROW_BLOCK
    end = whole + tl.arange(0, ROW_BLOCK)
    last = _reduced(line, g, end, m, base, scale, True)
    least = last
    for start in tl.range(0, whole, ROW_BLOCK, num_stages=3):
        at = start + tl.arange(0, ROW_BLOCK)
        least = tl.minimum(least, _reduced(line, g, at, m, base, scale, False))
    smallest = tl.min(least, 0)
    over = last - smallest
    total = tl.exp(-over * inverse)
    stays = total * tl.load(retained + end, mask=end < m, other=0.0)
    moved = tl.where(end < m, stays * over, 0.0)
    for start in tl.range(0, whole, ROW_BLOCK, num_stages=3):
        at = start + tl.arange(0, ROW_BLOCK)
        over = _reduced(line, g, at, m, base, scale, False) - smallest
        plan = tl.exp(-over * inverse)
        stay = plan * tl.load(retained + at)
        total += plan
        stays += stay
        moved += stay * over
    weight = m / tl.sum(total, 0)
    stay_in_row = weight * tl.sum(stays, 0)
    tl.store(low + row, smallest)
    tl.store(weights + row, weight)
    tl.store(f + row, smallest + tl.load(scales) * tl.log(weight))
    tl.store(retained_rows + row, stay_in_row)
    tl.store(reduced + row, weight * tl.sum(moved, 0) + smallest * stay_in_row)


@jit(do_not_specialize=["n", "m"])
def _columns_kernel(
    q,
    offset,
    step,
    g,
    scales,
    low,
    weights,
    columns,
    hard_g,
    pitch,
    n,
    m,
    ADDED_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some columns of ADDED_ROWS rows a program, into a row of `columns` and of `hard_g`."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    reached = at < m
    inverse = tl.load(scales + 1)
    paid = tl.load(g + at, mask=reached, other=0.0)
    added = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
    closest = tl.full([ROWS, COLUMNS], float("inf"), dtype=tl.float64)
    part = tl.program_id(1)
    first = part * ADDED_ROWS
    for start in tl.range(first, tl.minimum(first + ADDED_ROWS, n), ROWS, num_stages=3):
        rows = start + tl.arange(0, ROWS)
        inside = rows < n
        base = tl.load(offset + rows, mask=inside, other=0.0)
        base -= tl.load(low + rows, mask=inside, other=0.0)
        scale = tl.load(step + rows, mask=inside, other=0.0)
        weight = tl.load(weights + rows, mask=inside, other=0.0)
        cost = tl.load(
            q + rows.to(tl.int64)[:, None] * pitch + at[None, :],
            mask=inside[:, None] & reached[None, :],
            other=0,
        ).to(tl.float64)
        over = base[:, None] + scale[:, None] * cost
        plan = weight[:, None] * tl.exp((paid[None, :] - over) * inverse)
        added += tl.where(inside[:, None], plan, 0.0)
        closest = tl.minimum(closest, tl.where(inside[:, None], over, float("inf")))
    into = part.to(tl.int64) * m + at
    tl.store(columns + into, tl.sum(added, 0), mask=reached)
    tl.store(hard_g + into, tl.min(closest, 0), mask=reached)


@triton_op("rib::certified_pass", mutates_args=())
def certified_pass(
    q: Tensor, offset: Tensor, step: Tensor, g: Tensor, retained: Tensor, eps: float
) -> list[Tensor]:
    """[f, low, retained_rows, reduced] of rows, [n] each, and [columns, hard_g], [m]; all float64.

    q: int16 or float32 [n, m], whose rows may lie apart; offset, step: float64 [n]; g, retained:
    float64 [m]. retained_rows, reduced and columns are n m times what they are of a plan whose mass
    is 1.
    """
    (n, m), q = q.shape, rows_apart(q)
    offset, step, g, retained = (tensor.contiguous() for tensor in (offset, step, g, retained))
    scales = torch.tensor([eps, 1 / eps], dtype=torch.float64).to(q.device, non_blocking=True)
    f, low, weights, retained_rows, reduced = (torch.empty_like(offset) for _ in range(5))
    launcher(_rows_kernel)[(n,)](
        *(q, offset, step, g, retained, scales, f, low, weights, retained_rows, reduced),
        *(q.stride(0), m),
        ROW_BLOCK=_ROW_BLOCK,
        num_warps=_WARPS,
    )
    parts = -(-n // _ADDED_ROWS)
    columns, hard_g = g.new_empty(parts, m), g.new_empty(parts, m)
    launcher(_columns_kernel)[(-(-m // _COLUMNS), parts)](
        *(q, offset, step, g, scales, low, weights, columns, hard_g, q.stride(0), n, m),
        ADDED_ROWS=_ADDED_ROWS,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
    )
    return [f, low, retained_rows, reduced, columns.sum(0), hard_g.amin(0)]


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    sizes = ("pitch", "n", "m")
    tiles = {
        "ADDED_ROWS": _ADDED_ROWS,
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
        "ROW_BLOCK": _ROW_BLOCK,
    }
    return [
        {
            "name": f"certified_pass {name} {kind}",
            "fn": fn,
            "signature": {
                a: "i32" if a in sizes else f"*{short}" if a == "q" else "*fp64"
                for a in fn.arg_names
                if a not in tiles
            },
            "constexprs": {a: tiles[a] for a in fn.arg_names if a in tiles},
            "num_warps": _WARPS,
            "bytes_per_element": None,
            "aligned": name == "rows",
            "streams": (1, 0),
        }
        for kind, short in (("int16", "i16"), ("float32", "fp32"))
        for name, fn in (("rows", _rows_kernel), ("columns", _columns_kernel))
    ]
