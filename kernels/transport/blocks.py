"""The step of the column potentials after a sweep: the usual update, and one between whole blocks.

A sweep leaves column sums apart by blocks of rows, c_Rj. With c_j their sum over R and b_j = 1 / m,
the usual update of g_j / eps is -log r_j, r_j = c_j / b_j. After it the plan's mass between blocks
of rows and of columns is M_RC = sum_{j in C} c_Rj / r_j, whose marginals are still off where mass
has to move from block to block. Sinkhorn's iterations on that small matrix,

    u_R = a_R / sum_C M_RC v_C          v_C = b_C / sum_R u_R M_RC,

find what scales whole blocks, and log v_C is added to the step. They end when v changes by less
than a thousandth: the next sweep corrects the rest. On a GPU that is four launches, and the host
does not wait. Bytes moved: 8 m for each block of rows; M is read once an iteration, from L2.

Source: Koury, McAllister & Stewart 1984 (aggregation).
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, rows_apart, tl

_COLUMNS = 256
_MASS_ROWS, _MASS_COLUMNS = 16, 64  # of sums that a program of the mass adds up at once
_TILE = 8192  # numbers of M that a program holds: 16 a thread
_WARPS, _SCALING_WARPS = 4, 16


def block_step(
    columns: Tensor, of_rows: Tensor, of_columns: Tensor, block: Tensor
) -> tuple[Tensor, Tensor]:
    """r, at least 1e-30, and the step of g / eps, both float64 [m].

    columns: float32 [k, m], sums by blocks of rows, not yet times 1 / n. of_rows, of_columns: int64
    [k + 1] rising from 0 to n, and [l + 1] rising from 0 to m: where blocks begin and end, on the
    device of `columns`. block: int64 [m], each column's.
    """
    step = _block_step if columns.is_cuda else reference.block_step
    ratio, change = step(columns, of_rows, of_columns, block)
    return ratio, change


@jit(do_not_specialize=["m", "row_blocks"])
def _ratio_kernel(columns, of_rows, ratio, pitch, m, row_blocks, COLUMNS: tl.constexpr):
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], dtype=tl.float64)
    line = columns + at
    for _ in tl.range(0, row_blocks, num_stages=3):
        total += tl.load(line, mask=at < m, other=0.0).to(tl.float64)
        line += pitch
    over_b = total * m / tl.load(of_rows + row_blocks)
    tl.store(ratio + at, tl.maximum(over_b, 1e-30), mask=at < m)


@jit(do_not_specialize=["row_blocks", "column_blocks"])
def _mass_kernel(
    columns, ratio, of_columns, mass, pitch, row_blocks, column_blocks,
    BLOCKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Between some blocks of rows and a block of columns."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < row_blocks
    to = tl.program_id(1)
    first, stop = tl.load(of_columns + to), tl.load(of_columns + to + 1)
    lines = columns + block.to(tl.int64)[:, None] * pitch
    total = tl.zeros([BLOCKS, COLUMNS], dtype=tl.float32)
    for start in tl.range(first, stop, COLUMNS, num_stages=3):
        at = start + tl.arange(0, COLUMNS)
        held = at < stop
        over = tl.load(ratio + at, mask=held, other=1.0).to(tl.float32)
        places = lines + at[None, :]
        total += tl.load(places, mask=inside[:, None] & held[None, :], other=0.0) / over[None, :]
    tl.store(mass + block * column_blocks + to, tl.sum(total, 1), mask=inside)


@jit
def _bounded(x):
    return tl.minimum(tl.maximum(x, 1e-25), 1e25)


@jit(do_not_specialize=["row_blocks", "column_blocks"])
def _scaling_kernel(
    mass, of_rows, of_columns, scaling, row_blocks, column_blocks,
    ITERATIONS: tl.constexpr, CHANGE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """log v, by one program: many would have to wait for each other twice an iteration."""
    to = tl.arange(0, COLUMNS)
    valid = to < column_blocks
    size = tl.load(of_columns + to + 1, mask=valid, other=0)
    size -= tl.load(of_columns + to, mask=valid, other=0)
    n, m = tl.load(of_rows + row_blocks), tl.load(of_columns + column_blocks)
    b = size.to(tl.float32) * (n.to(tl.float32) / m.to(tl.float32))
    v = tl.full([COLUMNS], 1.0, dtype=tl.float32)
    change, iteration = 1e30, 0
    while (iteration < ITERATIONS) & (change >= CHANGE):
        sums = tl.zeros([COLUMNS], dtype=tl.float32)
        for start in range(0, row_blocks, ROWS):
            block = start + tl.arange(0, ROWS)
            inside = block < row_blocks
            a = tl.load(of_rows + block + 1, mask=inside, other=0)
            a -= tl.load(of_rows + block, mask=inside, other=0)
            places = mass + block[:, None] * column_blocks + to[None, :]
            part = tl.load(places, mask=inside[:, None] & valid[None, :], other=0.0)
            u = a.to(tl.float32) / _bounded(tl.sum(part * v[None, :], 1))
            sums += tl.sum(part * u[:, None], 0)
        new = tl.where(valid, b / _bounded(sums), 1.0)
        change = tl.max(tl.abs(new / v - 1.0), 0)
        v = new
        iteration += 1
    tl.store(scaling + to, tl.log(v), mask=valid)


@jit(do_not_specialize=["m"])
def _step_kernel(ratio, scaling, block, step, m, COLUMNS: tl.constexpr):
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    valid = at < m
    whole = tl.load(scaling + tl.load(block + at, mask=valid, other=0), mask=valid, other=0.0)
    usual = -tl.log(tl.load(ratio + at, mask=valid, other=1.0))
    tl.store(step + at, whole.to(tl.float64) + usual, mask=valid)


def _tile(column_blocks: int) -> dict[str, int]:
    columns = 1 << max(column_blocks - 1, 1).bit_length()
    return {"ROWS": max(1, _TILE // columns), "COLUMNS": columns}


@triton_op("rib::block_step", mutates_args=())
def _block_step(
    columns: Tensor, of_rows: Tensor, of_columns: Tensor, block: Tensor
) -> list[Tensor]:
    columns = rows_apart(columns)
    (k, m), pitch, most = columns.shape, columns.stride(0), len(of_columns) - 1
    ratio, step = (columns.new_empty(m, dtype=torch.float64) for _ in range(2))
    mass, scaling = columns.new_empty(k, most), columns.new_empty(most)
    tiles = (-(-m // _COLUMNS),)
    wide = {"COLUMNS": _COLUMNS, "num_warps": _WARPS}
    launcher(_ratio_kernel)[tiles](columns, of_rows, ratio, pitch, m, k, **wide)
    launcher(_mass_kernel)[(-(-k // _MASS_ROWS), most)](
        *(columns, ratio, of_columns, mass, pitch, k, most),
        BLOCKS=_MASS_ROWS,
        COLUMNS=_MASS_COLUMNS,
        num_warps=_WARPS,
    )
    launcher(_scaling_kernel)[(1,)](
        *(mass, of_rows, of_columns, scaling, k, most),
        ITERATIONS=reference.BLOCK_ITERATIONS,
        CHANGE=reference.BLOCK_CHANGE,
        **_tile(most),
        num_warps=_SCALING_WARPS,
    )
    launcher(_step_kernel)[tiles](ratio, scaling, block, step, m, **wide)
    return [ratio, step]


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`. No mask is a multiple of 16."""
    kinds = dict.fromkeys(("columns", "mass", "scaling"), "*fp32")
    kinds |= dict.fromkeys(("of_rows", "of_columns", "block"), "*i64")
    kinds |= dict.fromkeys(("ratio", "step"), "*fp64")
    kinds |= dict.fromkeys(("pitch", "m", "row_blocks", "column_blocks"), "i32")
    wide = {"COLUMNS": _COLUMNS}
    between = {"BLOCKS": _MASS_ROWS, "COLUMNS": _MASS_COLUMNS}
    limits = {"ITERATIONS": reference.BLOCK_ITERATIONS, "CHANGE": reference.BLOCK_CHANGE}
    return [
        {
            "name": f"block_step {name}",
            "fn": fn,
            "signature": {a: kinds[a] for a in fn.arg_names if a not in constants},
            "constexprs": constants,
            "num_warps": warps,
            "bytes_per_element": None,
            "aligned": False,
        }
        for name, fn, constants, warps in (
            ("ratio", _ratio_kernel, wide, _WARPS),
            ("mass", _mass_kernel, between, _WARPS),
            ("step", _step_kernel, wide, _WARPS),
            ("scaling[100]", _scaling_kernel, limits | _tile(100), _SCALING_WARPS),
            ("scaling[1000]", _scaling_kernel, limits | _tile(1000), _SCALING_WARPS),
        )
    ]
