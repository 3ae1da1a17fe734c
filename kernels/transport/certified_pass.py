"""The float64 pass of a certificate over the stored cost, on a GPU.

With C_ij = offset_i + step_i q_ij, u_ij = C_ij - g_j and its row's minimum low_i:

    s_i = sum_j p_ij,  p_ij = exp((low_i - u_ij) / eps)      f_i = low_i - eps log(s_i / m)
    sums over a row of p_ij kept_j and of p_ij kept_j u_ij, and over a column of p_ij, times m / s_i
    hard_g_j = min_i (C_ij - low_i)

As operators of PyTorch that is a dozen passes over a float64 strip, about 160 bytes a cost. Here a
program takes a row twice, for its minimum and for its sums, and others add the rows of the strip
before to their columns while it is in the L2 cache: `sweep`'s schedule, one launch a strip, no
atomics, and so the same sums every time. Bytes moved: 2 n m (4 n m for float32 copies); float64
arithmetic, two exponentials a cost, is the bound.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels.launch import jit, launcher, tl

_STRIP_BYTES = 16 << 20  # of q: two strips share the L2 cache of an A100 (40 MB)
_ROWS = 4
_COLUMNS = 256
_ROW_BLOCK = 1024
_WARPS = 4


@jit
def _pass_kernel(
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
    columns,
    hard_g,
    m,
    sum_from,
    sum_to,
    add_from,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
):
    """The first programs take a row each, from sum_from to sum_to; the others add up the rows from
    add_from to sum_from, some columns each. scales: eps and 1 / eps, which as arguments would be
    rounded to float32."""
    rows_to_sum = sum_to - sum_from
    program = tl.program_id(0)
    inverse = tl.load(scales + 1)
    if program < rows_to_sum:
        row = sum_from + program
        line = q + row.to(tl.int64) * m
        base = tl.load(offset + row)
        scale = tl.load(step + row)
        least = tl.full([ROW_BLOCK], float("inf"), dtype=tl.float64)
        for start in range(0, m, ROW_BLOCK):
            at = start + tl.arange(0, ROW_BLOCK)
            price = tl.load(g + at, mask=at < m, other=float("-inf"))
            cost = tl.load(line + at, mask=at < m, other=0).to(tl.float64)
            least = tl.minimum(least, base + scale * cost - price)
        smallest = tl.min(least, 0)
        total = tl.zeros([ROW_BLOCK], dtype=tl.float64)
        stays = tl.zeros([ROW_BLOCK], dtype=tl.float64)
        moved = tl.zeros([ROW_BLOCK], dtype=tl.float64)
        for start in range(0, m, ROW_BLOCK):
            at = start + tl.arange(0, ROW_BLOCK)
            valid = at < m
            price = tl.load(g + at, mask=valid, other=0.0)
            share = tl.load(retained + at, mask=valid, other=0.0)
            cost = tl.load(line + at, mask=valid, other=0).to(tl.float64)
            over = base + scale * cost - price - smallest
            plan = tl.where(valid, tl.exp(-over * inverse), 0.0)
            total += plan
            stays += plan * share
            moved += plan * share * over
        sum_of_row = tl.sum(total, 0)
        weight = m / sum_of_row
        stay = weight * tl.sum(stays, 0)
        tl.store(low + row, smallest)
        tl.store(weights + row, weight)
        tl.store(f + row, smallest + tl.load(scales) * tl.log(weight))
        tl.store(retained_rows + row, stay)
        tl.store(reduced + row, weight * tl.sum(moved, 0) + smallest * stay)
    else:
        at = (program - rows_to_sum) * COLUMNS + tl.arange(0, COLUMNS)
        reached = at < m
        paid = tl.load(g + at, mask=reached, other=0.0)
        added = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
        closest = tl.full([ROWS, COLUMNS], float("inf"), dtype=tl.float64)
        for start in range(add_from, sum_from, ROWS):
            rows = start + tl.arange(0, ROWS)
            inside = (rows < sum_from)[:, None]
            base = tl.load(offset + rows, mask=rows < sum_from, other=0.0)
            base -= tl.load(low + rows, mask=rows < sum_from, other=0.0)
            scale = tl.load(step + rows, mask=rows < sum_from, other=0.0)
            weight = tl.load(weights + rows, mask=rows < sum_from, other=0.0)
            cost = tl.load(
                q + rows.to(tl.int64)[:, None] * m + at[None, :],
                mask=inside & reached[None, :],
                other=0,
            ).to(tl.float64)
            over = base[:, None] + scale[:, None] * cost
            plan = weight[:, None] * tl.exp((paid[None, :] - over) * inverse)
            added += tl.where(inside, plan, 0.0)
            closest = tl.minimum(closest, tl.where(inside, over, float("inf")))
        before = tl.load(columns + at, mask=reached, other=0.0)
        tl.store(columns + at, before + tl.sum(added, 0), mask=reached)
        before = tl.load(hard_g + at, mask=reached, other=0.0)
        tl.store(hard_g + at, tl.minimum(before, tl.min(closest, 0)), mask=reached)


@triton_op("rib::certified_pass", mutates_args=())
def certified_pass(
    q: Tensor, offset: Tensor, step: Tensor, g: Tensor, retained: Tensor, eps: float
) -> list[Tensor]:
    """[f, low, retained_rows, reduced] of rows, [n] each, and [columns, hard_g], [m]; all float64.

    q: int16 or float32 [n, m]; offset, step: float64 [n]; g, retained: float64 [m]. retained_rows,
    reduced and columns are n m times what they are of a plan whose mass is 1.
    """
    n, m = q.shape
    q, offset, step, g, retained = (
        tensor.contiguous() for tensor in (q, offset, step, g, retained)
    )
    scales = torch.tensor([eps, 1 / eps], dtype=torch.float64).to(q.device, non_blocking=True)
    f, low, weights, retained_rows, reduced = (torch.empty_like(offset) for _ in range(5))
    columns, hard_g = torch.zeros_like(g), torch.full_like(g, torch.inf)
    strip = max(_ROWS, _STRIP_BYTES // (m * q.element_size()) // _ROWS * _ROWS)
    added = summed = 0
    while added < n:
        sum_to = min(summed + strip, n)
        adding = -(-m // _COLUMNS) if summed else 0
        launcher(_pass_kernel)[(sum_to - summed + adding,)](
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
            columns,
            hard_g,
            m,
            summed,
            sum_to,
            added,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            ROW_BLOCK=_ROW_BLOCK,
            num_warps=_WARPS,
        )
        added, summed = summed, sum_to
    return [f, low, retained_rows, reduced, columns, hard_g]


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    arguments = _pass_kernel.arg_names if hasattr(_pass_kernel, "arg_names") else ()
    sizes = ("m", "sum_from", "sum_to", "add_from")
    doubles = [a for a in arguments if a.islower() and a not in ("q", *sizes)]
    return [
        {
            "name": f"certified_pass {kind}",
            "fn": _pass_kernel,
            "signature": {"q": f"*{short}"}
            | dict.fromkeys(doubles, "*fp64")
            | dict.fromkeys(sizes, "i32"),
            "constexprs": {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "ROW_BLOCK": _ROW_BLOCK},
            "num_warps": _WARPS,
            "bytes_per_element": None,
        }
        for kind, short in (("int16", "i16"), ("float32", "fp32"))
    ]
