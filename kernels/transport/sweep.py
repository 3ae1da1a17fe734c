"""One alternating Sinkhorn iteration for one read of the stored cost matrix.

The textbook reads the matrix twice an iteration: once for the row potentials, once for the column
potentials. But as soon as a row is summed, its new potential is known, and its contribution to the
column sums can be added while the row is in cache. With p_ij = b_j exp((f_i + g_j - C_ij) / eps):

    s_i = sum_j p_ij            f_i <- f_i - eps log s_i
    c_j = sum_i a_i p_ij / s_i  (the column sums with the new f)

and g_j <- g_j - eps log(c_j / b_j) completes the iteration. The old f stabilises the
exponential, so no maximum is searched. Column sums are float32's for `PART` rows and float64's for
all. On the CPU the loop is compiled by numba where it is installed, and reads 2 n m bytes (4 n m of
a float32 copy).

On a GPU it is three launches, whatever n and m are: a program for four rows, which share a read of
g (3 bytes a cost from the L2 cache, 2 of them the cost's own; a row a program would read 6), then a
program for some columns of `PART` rows, and the sum of their sums. They read the matrix twice.
Strips whose columns are added while they are in the L2 cache would read it once, but in hundreds of
launches, at 20 to 34 us of the host each. There are no atomics: sums are the same every time. Where
row sums are all that is needed (`row_sums`) it is one launch and one read.

Source: Cuturi 2013.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, rows_apart, tl
from kernels.threads import HAS_NUMBA, spread

_COMPILE_FROM = 1 << 19  # costs: what importing numba (half a second) would have to repay
PART = 512  # rows that float32 adds up
_ROWS = 4
_COLUMNS = 512
_ROW_BLOCK = 1024
_WARPS = 4


def sinkhorn_sweep(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> list[Tensor]:
    """Row sums' logarithms, float32 [n], and column sums of the plan with the new f, float64 [m].

    q: int16 or float32 [n, m]; kappa: float32 [n], step over eps; f: float32 [n], the row
    potentials less the cost's offset, over eps; g: float32 [m], the column potentials over eps
    plus log b; so that p_ij = exp(f_i + g_j - kappa_i q_ij). Column sums are sum_i p_ij / s_i: the
    caller multiplies them by a. Sums that overflow come back as infinity or NaN. On a GPU rows of q
    may lie apart (`kernels.launch.padded`).
    """
    if q.is_cuda:
        return _sweep(q, f, g, kappa)
    if _compiled(q):
        return _on_threads(q, f, g, kappa)
    return reference.sinkhorn_sweep(q, f, g, kappa)


def row_sums(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> Tensor:
    """Row sums' logarithms, as `sinkhorn_sweep` without sums of columns."""
    if q.is_cuda:
        return _row_sums(q, f, g, kappa)[0]
    if _compiled(q):
        return _rows_on_threads(q, f, g, kappa)
    return reference.row_sums(q, f, g, kappa)


def _compiled(q: Tensor) -> bool:
    return HAS_NUMBA and q.device.type == "cpu" and q.numel() >= _COMPILE_FROM


def _on_threads(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> list[Tensor]:
    from kernels.transport import loops

    log_s, columns = torch.empty_like(f), torch.zeros(-(-len(q) // PART), len(g))

    def work(part: int) -> None:
        rows = slice(part * PART, (part + 1) * PART)
        tensors = q[rows], f[rows], g, kappa[rows], log_s[rows], columns[part], torch.empty_like(g)
        loops.sweep(*(tensor.numpy() for tensor in tensors))

    spread(work, [(part,) for part in range(len(columns))], torch.get_num_threads())
    return [log_s, columns.sum(0, dtype=torch.float64)]


def _rows_on_threads(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> Tensor:
    from kernels.transport import loops

    log_s = torch.empty_like(f)

    def work(start: int) -> None:
        rows = slice(start, start + PART)
        tensors = q[rows], f[rows], g, kappa[rows], log_s[rows]
        loops.row_sums(*(tensor.numpy() for tensor in tensors))

    spread(work, [(start,) for start in range(0, len(q), PART)], torch.get_num_threads())
    return log_s


@jit
def _part_of_rows(lines, g, at, m, potential, scale, MASKED: tl.constexpr):
    if MASKED:
        price = tl.load(g + at, mask=at < m, other=float("-inf"))
        cost = tl.load(lines + at[None, :], mask=(at < m)[None, :], other=0)
    else:
        price = tl.load(g + at)
        cost = tl.load(lines + at[None, :])
    return tl.exp(potential[:, None] + price[None, :] - scale[:, None] * cost.to(tl.float32))


@jit(do_not_specialize=["n", "m"])
def _rows_kernel(
    q, f, g, kappa, log_s, shares, pitch, n, m, ROWS: tl.constexpr, ROW_BLOCK: tl.constexpr
):
    """ROWS rows a program, which share a read of g: the logarithms of their sums, and f less that,
    which makes a row's sum 1. The last program takes the last row several times.

    Only the end of a row is masked: with a mask that is not a multiple of 16, no access is wide.
    """
    rows = tl.minimum(tl.program_id(0) * ROWS + tl.arange(0, ROWS), n - 1)
    lines = q + rows.to(tl.int64)[:, None] * pitch
    potential = tl.load(f + rows)
    scale = tl.load(kappa + rows)
    partial = tl.zeros([ROWS, ROW_BLOCK], dtype=tl.float32)
    whole = m // ROW_BLOCK * ROW_BLOCK
    for start in tl.range(0, whole, ROW_BLOCK, num_stages=3):
        at = start + tl.arange(0, ROW_BLOCK)
        partial += _part_of_rows(lines, g, at, m, potential, scale, False)
    at = whole + tl.arange(0, ROW_BLOCK)
    partial += _part_of_rows(lines, g, at, m, potential, scale, True)
    total = tl.log(tl.sum(partial, 1))
    tl.store(log_s + rows, total)
    tl.store(shares + rows, potential - total)


@jit
def _added_rows(
    q, f, kappa, price, pitch, at, m, first, stop,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    added = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in tl.range(first, stop, ROWS, num_stages=3):
        rows = start + tl.arange(0, ROWS)
        inside = rows < stop
        potential = tl.load(f + rows, mask=inside, other=float("-inf"))
        scale = tl.load(kappa + rows, mask=inside, other=0.0)
        places = q + rows.to(tl.int64)[:, None] * pitch + at[None, :]
        if MASKED:
            cost = tl.load(places, mask=inside[:, None] & (at < m)[None, :], other=0)
        else:
            cost = tl.load(places, mask=inside[:, None], other=0)
        added += tl.exp(potential[:, None] + price[None, :] - scale[:, None] * cost.to(tl.float32))
    return tl.sum(added, 0)


@jit(do_not_specialize=["n", "m"])
def _columns_kernel(
    q, f, g, kappa, columns, pitch, n, m,
    PART: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some columns of PART rows a program; f is what makes rows' sums 1."""
    part = tl.program_id(1)
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    price = tl.load(g + at, mask=at < m, other=float("-inf"))
    first = part * PART
    stop = tl.minimum(first + PART, n)
    into = columns + part.to(tl.int64) * pitch + at
    if (tl.program_id(0) + 1) * COLUMNS <= m:
        tl.store(
            into, _added_rows(q, f, kappa, price, pitch, at, m, first, stop, ROWS, COLUMNS, False)
        )
    else:
        added = _added_rows(q, f, kappa, price, pitch, at, m, first, stop, ROWS, COLUMNS, True)
        tl.store(into, added, mask=at < m)


@triton_op("rib::row_sums", mutates_args=())
def _row_sums(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> list[Tensor]:
    """The rows' log sums, and f less them."""
    q, f, g, kappa = rows_apart(q), f.contiguous(), g.contiguous(), kappa.contiguous()
    log_s, shares = torch.empty_like(f), torch.empty_like(f)
    launcher(_rows_kernel)[(-(-len(q) // _ROWS),)](
        *(q, f, g, kappa, log_s, shares, q.stride(0), *q.shape),
        ROWS=_ROWS,
        ROW_BLOCK=_ROW_BLOCK,
        num_warps=_WARPS,
    )
    return [log_s, shares]


@triton_op("rib::sinkhorn_sweep", mutates_args=())
def _sweep(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> list[Tensor]:
    log_s, shares = _row_sums(q, f, g, kappa)
    q, g, kappa = rows_apart(q), g.contiguous(), kappa.contiguous()
    (n, m), pitch = q.shape, q.stride(0)
    columns = g.new_empty(-(-n // PART), pitch)
    launcher(_columns_kernel)[(-(-m // _COLUMNS), len(columns))](
        *(q, shares, g, kappa, columns, pitch, n, m),
        PART=PART,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
    )
    return [log_s, columns[:, :m].sum(0, dtype=torch.float64)]


def specializations() -> list[dict[str, Any]]:
    """Specializations for the ahead-of-time gate; see `kernels.aot`."""
    tiles = {"PART": PART, "ROWS": _ROWS, "COLUMNS": _COLUMNS, "ROW_BLOCK": _ROW_BLOCK}
    kinds = dict.fromkeys(("f", "g", "kappa", "log_s", "shares", "columns"), "*fp32")
    kinds |= dict.fromkeys(("pitch", "n", "m"), "i32")
    return [
        {
            "name": f"{name} {kind}",
            "fn": fn,
            "signature": {
                a: {"q": f"*{short}", **kinds}[a] for a in fn.arg_names if a not in tiles
            },
            "constexprs": {a: tiles[a] for a in fn.arg_names if a in tiles},
            "divisible": ["pitch"],
            "num_warps": _WARPS,
            "bytes_per_element": moved,
            "streams": (1, stores),
        }
        for kind, short, moved in (("int16", "i16", 2), ("float32", "fp32", 4))
        for name, fn, stores in (
            ("row_sums", _rows_kernel, 0),
            ("sinkhorn_sweep", _columns_kernel, 1),
        )
    ]
