"""Row sums of a set against itself, from one triangle of the stored cost.

An iteration of a self term needs the sums s_i = sum_j p_ij alone, p_ij = exp(f_i + g_j - kappa_i
q_ij) (`sweep`). The cost is symmetric, and f and g are one potential, so p_ij = p_ji: an entry
above the diagonal is a term of row i's sum and of row j's. Samples are cut into blocks, and a
program takes the tile of two blocks that lies on or above the diagonal: half of the costs are read
and half of the exponentials computed. A tile on the diagonal holds both triangles, and all of its
entries count for their own rows.

A program writes its sums to a float32 buffer [blocks, n], whose number (k, i) is row i's sum over
the columns of block k, and a second launch adds these up. There are no atomics: sums are the same
every time. The buffer takes n^2 / 16 bytes while no strip and no sparse plan is held, which are
counted beside the copy (`store`) and are larger for up to 500,000 samples.

q is rounded row by row, and the entry (i, j), rounded with the step of row i, stands for (j, i)
too, which a reader of whole rows has rounded with the step of row j. The two costs differ by at
most the sum of two half steps, and by float32's rounding of two products. Iterations find other
potentials for it, but no other bounds: the certificate reads whole rows, and bounds the value
whatever the potential is.

Bytes moved: n^2 of an int16 copy (2 n^2 of a float32 one), half of what whole rows take, and
n^2 / 8 of sums. Predicted, not measured, for n = 50,000 and int16 on an H100 (3.0 TB/s; 16
exponentials and 128 instructions a clock on each of 132 multiprocessors at 1.7 GHz): whole rows are
5.0 GB, 1.7 ms, and 0.70 ms of exponentials; a triangle is 2.8 GB, 0.94 ms, and 0.35 ms of
exponentials. Its code for sm_90 has 16 instructions a cost, 0.69 ms of them, so that memory is the
bound by little.

Source: Feydy et al. 2019 (one-potential self terms).
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels.launch import jit, launcher, rows_apart, tl
from kernels.transport.sweep import row_sums

# 64 costs a thread and 110 registers: nine programs fit a multiprocessor, and the loads of some
# hide behind the arithmetic of others. Of 128 x 128 costs and 8 warps, with half the partial sums,
# two fit. Chosen by counting, not by a timing.
_TILE, _TILE_WARPS = 64, 2
_ROWS, _COLUMNS = 16, 128  # of partial sums that a program adds up at once
_WARPS = 4


def symmetric_row_sums(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> Tensor:
    """Row sums' logarithms, float32 [n], as `row_sums` of a plan that is its own transpose up to
    the rounding of q.

    q: int16 or float32 [n, n], whose rows on a GPU may lie apart (`kernels.launch.padded`); f, g,
    kappa: float32 [n], see `sinkhorn_sweep`. Sums that overflow come back as infinity or NaN. The
    CPU sums whole rows.
    """
    if not q.is_cuda:
        return row_sums(q, f, g, kappa)
    return _symmetric_row_sums(q, f, g, kappa)


@jit
def _sum_tile(
    q, f, g, kappa, partial, upper, lower, pitch, n, TILE: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Sums of the rows of block `upper` and of the columns of block `lower`, which is not above."""
    rows = upper * TILE + tl.arange(0, TILE)
    columns = lower * TILE + tl.arange(0, TILE)
    places = q + rows.to(tl.int64)[:, None] * pitch + columns[None, :]
    of_rows = partial + lower.to(tl.int64) * pitch + rows
    of_columns = partial + upper.to(tl.int64) * pitch + columns
    if MASKED:
        potential = tl.load(f + rows, mask=rows < n, other=float("-inf"))
        price = tl.load(g + columns, mask=columns < n, other=float("-inf"))
        scale = tl.load(kappa + rows, mask=rows < n, other=0.0)
        cost = tl.load(places, mask=(rows < n)[:, None] & (columns < n)[None, :], other=0)
    else:
        potential = tl.load(f + rows)
        price = tl.load(g + columns)
        scale = tl.load(kappa + rows)
        cost = tl.load(places)
    p = tl.exp(potential[:, None] + price[None, :] - scale[:, None] * cost.to(tl.float32))
    tl.store(of_rows, tl.sum(p, 1), mask=rows < n)
    if upper != lower:
        tl.store(of_columns, tl.sum(p, 0), mask=columns < n)


@jit(do_not_specialize=["n", "blocks"])
def _tiles_kernel(q, f, g, kappa, partial, pitch, n, blocks, TILE: tl.constexpr):
    """The tile of two blocks a program: of a block and one up to half-way round from it.

    Of an odd number of blocks that is each pair once. Only tiles at the end are masked: with a mask
    that is no multiple of 16 no access is wide.
    """
    block = tl.program_id(1)
    other = (block + tl.program_id(0)) % blocks
    upper, lower = tl.minimum(block, other), tl.maximum(block, other)
    if (lower + 1) * TILE <= n:
        _sum_tile(q, f, g, kappa, partial, upper, lower, pitch, n, TILE, False)
    else:
        _sum_tile(q, f, g, kappa, partial, upper, lower, pitch, n, TILE, True)


@jit(do_not_specialize=["n", "blocks"])
def _log_sums_kernel(
    partial, log_s, pitch, n, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Some samples a program: the logarithm of their partial sums' sum."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in tl.range(0, blocks, ROWS, num_stages=3):
        block = start + tl.arange(0, ROWS)
        places = partial + block.to(tl.int64)[:, None] * pitch + at[None, :]
        total += tl.load(places, mask=(block < blocks)[:, None] & (at < n)[None, :], other=0.0)
    tl.store(log_s + at, tl.log(tl.sum(total, 0)), mask=at < n)


@triton_op("rib::symmetric_row_sums", mutates_args=())
def _symmetric_row_sums(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> Tensor:
    assert q.shape[0] == q.shape[1], "a set against itself has a square cost"
    q, f, g, kappa = rows_apart(q), f.contiguous(), g.contiguous(), kappa.contiguous()
    n, pitch = len(q), q.stride(0)
    blocks = -(-n // _TILE) | 1  # odd: the last may be empty
    partial, log_s = f.new_empty(blocks, pitch), torch.empty_like(f)
    launcher(_tiles_kernel)[(blocks // 2 + 1, blocks)](
        *(q, f, g, kappa, partial, pitch, n, blocks), TILE=_TILE, num_warps=_TILE_WARPS
    )
    launcher(_log_sums_kernel)[(-(-n // _COLUMNS),)](
        *(partial, log_s, pitch, n, blocks), ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS
    )
    return log_s


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    kinds = dict.fromkeys(("f", "g", "kappa", "partial", "log_s"), "*fp32")
    kinds |= dict.fromkeys(("pitch", "n", "blocks"), "i32")
    tile, strip = {"TILE": _TILE}, {"ROWS": _ROWS, "COLUMNS": _COLUMNS}
    return [
        {
            "name": f"symmetric_row_sums {name}",
            "fn": fn,
            "signature": {a: (kinds | {"q": q})[a] for a in fn.arg_names if a not in constants},
            "constexprs": constants,
            "num_warps": warps,
            "bytes_per_element": moved,
            "aligned": moved is not None,
            "streams": (1, 0),
        }
        for name, fn, q, constants, warps, moved in (
            ("int16", _tiles_kernel, "*i16", tile, _TILE_WARPS, 2),
            ("float32", _tiles_kernel, "*fp32", tile, _TILE_WARPS, 4),
            ("logarithms", _log_sums_kernel, "", strip, _WARPS, None),
        )
    ]
