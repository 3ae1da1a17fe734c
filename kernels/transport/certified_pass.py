"""The GPU pass of a certificate over the stored cost.

With C_ij = offset_i + step_i q_ij, u_ij = C_ij - g_j, its row minimum low_i, and the retained
shares s_j of the columns, the pass computes

    S_i = sum_j p_ij,  p_ij = exp((low_i - u_ij) / eps)      f_i = low_i - eps log(S_i / m)
    sums over a row of p_ij (1 - s_j) and of p_ij s_j (u_ij - low_i), times m / S_i
    sums over a column of p_ij m / S_i                       hard_g_j = min_i (C_ij - low_i)

As PyTorch operators this takes a dozen passes over a float64 strip, about 160 bytes per cost. Here
it takes two launches, like a sweep (`sweep`): first each program reads one row twice, for its
minimum and for its sums; then each program adds up the columns of some rows, and two more operators
reduce these partial sums. Without atomics, the sums are deterministic. Bytes moved: at least 4 n m
(8 n m for a float32 copy). Float64 arithmetic is the bound.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels.launch import jit, launcher, rows_apart, tl

_ADDED_ROWS = 1024  # rows that one program adds up
_ROWS = 2
_COLUMNS = 256
_ROW_BLOCK = 1024
_WARPS = 4


@jit
def _reduced(line, g, at, m, base, scale, MASKED: tl.constexpr):
    """Costs minus g; infinite beyond the row."""
    if MASKED:
        price = tl.load(g + at, mask=at < m, other=float("-inf"))
        cost = tl.load(line + at, mask=at < m, other=0)
    else:
        price = tl.load(g + at)
        cost = tl.load(line + at)
    return base + scale * cost.to(tl.float64) - price


@jit
def _terms(line, g, retained, at, m, base, scale, smallest, eps, MASKED: tl.constexpr):
    """p, p (1 - s) and p s (u - low) of part of a row."""
    over = _reduced(line, g, at, m, base, scale, MASKED) - smallest
    # Makes it finite beyond the row.
    over = tl.minimum(over, 1e3 * eps)
    p = tl.exp(-over / eps)
    if MASKED:
        stays = p * tl.load(retained + at, mask=at < m, other=0.0)
    else:
        stays = p * tl.load(retained + at)
    return p, p - stays, stays * over


@jit(do_not_specialize=["m"])
def _rows_kernel(
    q, offset, step, g, retained, eps, f, low, weights, lost, moved, pitch, m,
    ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """One row per program. eps is a pointer, since scalar arguments are rounded to float32."""
    row = tl.program_id(0)
    line = q + row.to(tl.int64) * pitch
    base = tl.load(offset + row)
    scale = tl.load(step + row)
    unit = tl.load(eps)
    whole = m // ROW_BLOCK * ROW_BLOCK
    end = whole + tl.arange(0, ROW_BLOCK)
    least = _reduced(line, g, end, m, base, scale, True)
    for start in tl.range(0, whole, ROW_BLOCK, num_stages=3):
        at = start + tl.arange(0, ROW_BLOCK)
        least = tl.minimum(least, _reduced(line, g, at, m, base, scale, False))
    smallest = tl.min(least, 0)
    total, leaving, moving = _terms(line, g, retained, end, m, base, scale, smallest, unit, True)
    for start in tl.range(0, whole, ROW_BLOCK, num_stages=3):
        at = start + tl.arange(0, ROW_BLOCK)
        p, leaves, moves = _terms(line, g, retained, at, m, base, scale, smallest, unit, False)
        total += p
        leaving += leaves
        moving += moves
    weight = m / tl.sum(total, 0)
    tl.store(low + row, smallest)
    tl.store(weights + row, weight)
    tl.store(f + row, smallest + unit * tl.log(weight))
    tl.store(lost + row, weight * tl.sum(leaving, 0))
    tl.store(moved + row, weight * tl.sum(moving, 0))


@jit(do_not_specialize=["n", "m"])
def _columns_kernel(
    q, offset, step, g, eps, low, weights, columns, hard_g, pitch, n, m,
    ADDED_ROWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some columns of ADDED_ROWS rows per program, into one row of `columns` and of `hard_g`."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    reached = at < m
    unit = tl.load(eps)
    paid = tl.load(g + at, mask=reached, other=0.0)
    added = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
    closest = tl.full([ROWS, COLUMNS], float("inf"), dtype=tl.float64)
    part = tl.program_id(1)
    first = part * ADDED_ROWS
    stop = tl.minimum(first + ADDED_ROWS, n)
    for start in tl.range(first, stop, ROWS, num_stages=3):
        rows = start + tl.arange(0, ROWS)
        inside = rows < stop
        base = tl.load(offset + rows, mask=inside, other=float("inf"))
        base -= tl.load(low + rows, mask=inside, other=0.0)
        scale = tl.load(step + rows, mask=inside, other=0.0)
        weight = tl.load(weights + rows, mask=inside, other=0.0)
        cost = tl.load(
            q + rows.to(tl.int64)[:, None] * pitch + at[None, :],
            mask=inside[:, None] & reached[None, :],
            other=0,
        ).to(tl.float64)
        over = base[:, None] + scale[:, None] * cost
        closest = tl.minimum(closest, over)
        added += weight[:, None] * tl.exp(-tl.minimum((over - paid[None, :]) / unit, 1e3))
    into = part.to(tl.int64) * m + at
    tl.store(columns + into, tl.sum(added, 0), mask=reached)
    tl.store(hard_g + into, tl.min(closest, 0), mask=reached)


@triton_op("rib::certified_pass", mutates_args=())
def certified_pass(
    q: Tensor, offset: Tensor, step: Tensor, g: Tensor, retained: Tensor, eps: float
) -> list[Tensor]:
    """Returns [f, low, lost, moved], each [n], and [columns, hard_g], each [m]; all float64.

    q: int16 or float32 [n, m], whose rows may be padded; offset, step: float64 [n]; g, retained:
    float64 [m]. lost, moved and columns are n m times those of a plan of mass 1.
    """
    (n, m), q = q.shape, rows_apart(q)
    offset, step, g, retained = (t.contiguous() for t in (offset, step, g, retained))
    unit = torch.tensor(eps, dtype=torch.float64).to(q.device, non_blocking=True)
    f, low, weights, lost, moved = (torch.empty_like(offset) for _ in range(5))
    launcher(_rows_kernel)[(n,)](
        *(q, offset, step, g, retained, unit, f, low, weights, lost, moved, q.stride(0), m),
        ROW_BLOCK=_ROW_BLOCK,
        num_warps=_WARPS,
    )
    parts = -(-n // _ADDED_ROWS)
    columns, hard_g = g.new_empty(parts, m), g.new_empty(parts, m)
    launcher(_columns_kernel)[(-(-m // _COLUMNS), parts)](
        *(q, offset, step, g, unit, low, weights, columns, hard_g, q.stride(0), n, m),
        ADDED_ROWS=_ADDED_ROWS,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
    )
    return [f, low, lost, moved, columns.sum(0), hard_g.amin(0)]


def specializations() -> list[dict[str, Any]]:
    """Specializations for the ahead-of-time gate; see `kernels.aot`."""
    tiles = {"ADDED_ROWS": _ADDED_ROWS, "ROWS": _ROWS, "COLUMNS": _COLUMNS, "ROW_BLOCK": _ROW_BLOCK}
    kinds = dict.fromkeys(("pitch", "n", "m"), "i32")
    return [
        {
            "name": f"certified_pass {name} {held}",
            "fn": fn,
            "signature": {
                a: ({"q": f"*{short}"} | kinds).get(a, "*fp64")
                for a in fn.arg_names
                if a not in tiles
            },
            "constexprs": {a: tiles[a] for a in fn.arg_names if a in tiles},
            "num_warps": _WARPS,
            "bytes_per_element": None,
            "aligned": name == "rows",
            "streams": (1, 0),
        }
        for held, short in (("int16", "i16"), ("float32", "fp32"))
        for name, fn in (("rows", _rows_kernel), ("columns", _columns_kernel))
    ]
