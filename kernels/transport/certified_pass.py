"""The pass of a certificate over the stored cost, on a GPU: float64 potentials, float32 sums.

With C_ij = offset_i + step_i q_ij, u_ij = C_ij - g_j, its row's minimum low_i, and shares s_j of
the columns:

    S_i = sum_j p_ij,  p_ij = exp((low_i - u_ij) / eps)      f_i = low_i - eps log(S_i / m)
    sums over a row of p_ij (1 - s_j) and of p_ij s_j (u_ij - low_i), times m / S_i
    sums over a column of p_ij m / S_i                       hard_g_j = min_i (C_ij - low_i)

As operators of PyTorch that is a dozen passes over a float64 strip, about 160 bytes a cost. Here it
is two launches, as a sweep's (`sweep`): a program takes a row twice, for its minimum and for its
sums, then others add the columns of some rows up, whose partial sums two more operators reduce.
There are no atomics, and so the same sums every time. Bytes moved: at least 4 n m (8 n m for a
float32 copy); arithmetic is the bound.

Exponents t = (u - low) / (eps log 2) and minima are always float64. With `single` the rest is not:
2^-t is 2^-k 2^r, k the nearest whole number and |r| <= 1/2, which is rounded to float32; terms are
float32, and _GROUP of them are added before the sum is added to a float64. How far each sum is
off, in units u = 2^-24 of itself and to first order:

- 2^r by a polynomial of degree 7, at most 4: with v_k = c_k + r v_(k+1), E_k <= E_(k+1) / 2 + |r
  v_(k+1)| u + |v_k| u + |c_k| u bounds the error of v_k; E_1 <= 2.0 u, and no error but the last
  addition's is left of c_0 = 1, so that E_0 <= 1.0 u + 0.42 u + v_0 u, where v_0 >= 0.707: 3.0.
  Rounding r adds log(2) / 4 = 0.2, and what the series leaves out, (log(2) / 2)^8 / 8!, 0.2.
- a sum of _GROUP terms that are not negative, in any order: 3. So S is off by 7, as m / S is.
- p (1 - s) adds two roundings, of the share and of the product: 4 + 2 + 3 + 7 = 16.
- p s t adds four and a half, t being k - r: 4 + 4.5 + 3 + 7 = 19 at most.
- p m / S adds two: 4 + 2 + 3 + 7 = 16.

`ROUNDING` is 20. Terms below 2^-125 of their row's largest are left out: a sum of 2^31 of them is
below float64's rounding of the row's, and a column that has no others has no mass (`certificate`).
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels.launch import jit, launcher, rows_apart, tl

ROUNDING = 20 * 2.0**-24  # of every sum with `single`, see above
_ADDED_ROWS = 1024  # rows that a program adds up
_ROWS = 2
_COLUMNS = 256
_ROW_BLOCK = 1024
_GROUP = 4  # float32 terms that are added before a float64 takes them
_WARPS = 4
_SHARES = ("stay", "leave")  # in the dtype of sums


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


@jit
def _exponential(t, SINGLE: tl.constexpr):
    """(2^-t and t, in float32) with SINGLE, or (e^-t and t, in float64); 0 for t that is large."""
    if SINGLE:
        near = tl.minimum(t, 127.0)
        # In 1.5 * 2^52 and what lies near it the last bit is worth 1.
        biased = near + 6755399441055744.0
        r = ((biased - 6755399441055744.0) - near).to(tl.float32)
        k = biased.to(tl.int64, bitcast=True).to(tl.int32)
        power = 1.5252734e-5 * r + 1.5403530e-4
        power = power * r + 1.3333558e-3
        power = power * r + 9.6181291e-3
        power = power * r + 5.5504109e-2
        power = power * r + 2.4022651e-1
        power = power * r + 6.9314718e-1
        power = power * r + 1.0
        scaled = power * ((127 - k) << 23).to(tl.float32, bitcast=True)
        return tl.where(k < 125, scaled, 0.0), k.to(tl.float32) - r
    else:
        near = tl.minimum(t, 1e3)
        return tl.exp(-near), near


@jit
def _grouped(terms, GROUP: tl.constexpr):
    groups: tl.constexpr = terms.shape[0] // GROUP
    return tl.sum(tl.reshape(terms, [groups, GROUP]), 1).to(tl.float64)


@jit
def _terms(
    line, g, stay, leave, at, m, base, scale, smallest, inverse,
    MASKED: tl.constexpr, SINGLE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """p, p (1 - s) and p s t of a row's costs, in sums of GROUP neighbours."""
    over = _reduced(line, g, at, m, base, scale, MASKED) - smallest
    p, t = _exponential(over * inverse, SINGLE)
    if MASKED:
        stays = tl.load(stay + at, mask=at < m, other=0.0)
        leaves = tl.load(leave + at, mask=at < m, other=0.0)
    else:
        stays = tl.load(stay + at)
        leaves = tl.load(leave + at)
    return _grouped(p, GROUP), _grouped(p * leaves, GROUP), _grouped(p * stays * t, GROUP)


@jit(do_not_specialize=["m"])
def _rows_kernel(
    q, offset, step, g, stay, leave, units, f, low, weights, lost, moved, pitch, m,
    ROW_BLOCK: tl.constexpr, GROUP: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """A row a program. units: eps, that of the exponents, and 1 over it, which as arguments would
    be rounded to float32."""
    row = tl.program_id(0)
    line = q + row.to(tl.int64) * pitch
    base = tl.load(offset + row)
    scale = tl.load(step + row)
    inverse = tl.load(units + 2)
    whole = m // ROW_BLOCK * ROW_BLOCK
    least = _reduced(line, g, whole + tl.arange(0, ROW_BLOCK), m, base, scale, True)
    for start in tl.range(0, whole, ROW_BLOCK, num_stages=3):
        at = start + tl.arange(0, ROW_BLOCK)
        least = tl.minimum(least, _reduced(line, g, at, m, base, scale, False))
    smallest = tl.min(least, 0)
    end = whole + tl.arange(0, ROW_BLOCK)
    total, leaving, moving = _terms(
        line, g, stay, leave, end, m, base, scale, smallest, inverse, True, SINGLE, GROUP
    )  # fmt: skip
    for start in tl.range(0, whole, ROW_BLOCK, num_stages=3):
        at = start + tl.arange(0, ROW_BLOCK)
        p, leaves, moves = _terms(
            line, g, stay, leave, at, m, base, scale, smallest, inverse, False, SINGLE, GROUP
        )  # fmt: skip
        total += p
        leaving += leaves
        moving += moves
    weight = m / tl.sum(total, 0)
    tl.store(low + row, smallest)
    tl.store(weights + row, weight)
    tl.store(f + row, smallest + tl.load(units) * tl.log(weight))
    tl.store(lost + row, weight * tl.sum(leaving, 0))
    tl.store(moved + row, weight * tl.sum(moving, 0) * tl.load(units + 1))


@jit(do_not_specialize=["n", "m"])
def _columns_kernel(
    q, offset, step, g, units, low, weights, columns, hard_g, pitch, n, m,
    ADDED_ROWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    SINGLE: tl.constexpr,
):  # fmt: skip
    """Some columns of ADDED_ROWS rows a program, into a row of `columns` and of `hard_g`."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    reached = at < m
    inverse = tl.load(units + 2)
    paid = tl.load(g + at, mask=reached, other=0.0)
    added = tl.zeros([ROWS, COLUMNS], dtype=tl.float64)
    closest = tl.full([ROWS, COLUMNS], float("inf"), dtype=tl.float64)
    part = tl.program_id(1)
    first = part * ADDED_ROWS
    stop = tl.minimum(first + ADDED_ROWS, n)
    for start in tl.range(first, stop, GROUP * ROWS, num_stages=3):
        group = tl.zeros([ROWS, COLUMNS], dtype=tl.float32 if SINGLE else tl.float64)
        for turn in tl.static_range(GROUP):
            rows = start + turn * ROWS + tl.arange(0, ROWS)
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
            p, _ = _exponential((over - paid[None, :]) * inverse, SINGLE)
            group += weight.to(group.dtype)[:, None] * p
        added += group.to(tl.float64)
    into = part.to(tl.int64) * m + at
    tl.store(columns + into, tl.sum(added, 0), mask=reached)
    tl.store(hard_g + into, tl.min(closest, 0), mask=reached)


@triton_op("rib::certified_pass", mutates_args=())
def certified_pass(
    q: Tensor,
    offset: Tensor,
    step: Tensor,
    g: Tensor,
    retained: Tensor,
    eps: float,
    single: bool,
) -> list[Tensor]:
    """[f, low, lost, moved] of rows, [n] each, and [columns, hard_g], [m]; all float64.

    q: int16 or float32 [n, m], whose rows may lie apart; offset, step: float64 [n]; g, retained:
    float64 [m]. lost, moved and columns are n m times what they are of a plan whose mass is 1;
    with `single` they are off by up to `ROUNDING` of themselves, and f by that of eps.
    """
    (n, m), q = q.shape, rows_apart(q)
    offset, step, g = (tensor.contiguous() for tensor in (offset, step, g))
    dtype = torch.float32 if single else torch.float64
    stay, leave = retained.to(dtype).contiguous(), (1 - retained).to(dtype)
    unit = eps * math.log(2) if single else eps
    units = torch.tensor([eps, unit, 1 / unit], dtype=torch.float64)
    units = units.to(q.device, non_blocking=True)
    f, low, weights, lost, moved = (torch.empty_like(offset) for _ in range(5))
    launcher(_rows_kernel)[(n,)](
        *(q, offset, step, g, stay, leave, units, f, low, weights, lost, moved),
        *(q.stride(0), m),
        ROW_BLOCK=_ROW_BLOCK,
        GROUP=_GROUP,
        SINGLE=single,
        num_warps=_WARPS,
    )
    parts = -(-n // _ADDED_ROWS)
    columns, hard_g = g.new_empty(parts, m), g.new_empty(parts, m)
    launcher(_columns_kernel)[(-(-m // _COLUMNS), parts)](
        *(q, offset, step, g, units, low, weights, columns, hard_g, q.stride(0), n, m),
        ADDED_ROWS=_ADDED_ROWS,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        GROUP=_GROUP,
        SINGLE=single,
        num_warps=_WARPS,
    )
    return [f, low, lost, moved, columns.sum(0), hard_g.amin(0)]


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    sizes = ("pitch", "n", "m")
    tiles = {
        "ADDED_ROWS": _ADDED_ROWS,
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
        "ROW_BLOCK": _ROW_BLOCK,
        "GROUP": _GROUP,
    }

    def kind(name: str, short: str, single: bool) -> str:
        if name in sizes:
            return "i32"
        return f"*{short}" if name == "q" else "*fp32" if single and name in _SHARES else "*fp64"

    return [
        {
            "name": f"certified_pass {name} {held}{', float32 sums' if single else ''}",
            "fn": fn,
            "signature": {
                a: kind(a, short, single) for a in fn.arg_names if a not in (*tiles, "SINGLE")
            },
            "constexprs": {a: tiles[a] for a in fn.arg_names if a in tiles} | {"SINGLE": single},
            "num_warps": _WARPS,
            "bytes_per_element": None,
            "aligned": name == "rows",
            "streams": (1, 0),
        }
        for held, short, single in (
            ("int16", "i16", True),
            ("float32", "fp32", True),
            ("float32", "fp32", False),
        )
        for name, fn in (("rows", _rows_kernel), ("columns", _columns_kernel))
    ]
