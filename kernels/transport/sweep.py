"""One alternating Sinkhorn iteration with one read of the stored cost matrix.

The textbook iteration reads the matrix twice: for the row potentials, then for the column
potentials. But a row's new potential is known as soon as the row is summed, so its contribution to
the column sums can be added while the row is in cache. With p_ij = b_j exp((f_i + g_j - C_ij) /
eps):

    s_i = sum_j p_ij            f_i <- f_i - eps log s_i
    c_j = sum_i a_i p_ij / s_i  (the column sums with the new f)

and g_j <- g_j - eps log(c_j / b_j) completes the iteration. The old f stabilises the exponential,
so no maximum is needed. Column sums are float32 within `PART` rows and float64 across them. On the
CPU, numba compiles the loop if it is installed, which reads 2 n m bytes (4 n m for a float32 copy).

On a GPU the sweep takes three launches for any n and m. In the first, each program handles four
rows, which share a read of g: 3 bytes per cost from the L2 cache, 2 of them for the cost itself;
one row per program would read 6. In the second, each program adds up some columns of `PART` rows.
The third adds these sums. This reads the matrix twice. Adding the columns of a strip while it is in
the L2 cache would read it once, but needs hundreds of launches, at 20 to 34 us of host time each.
Without atomics, the sums are deterministic. `row_sums` computes row sums only, with one launch and
one read.

Source: Cuturi 2013.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import launch
from kernels.launch import jit, rows_apart, tl
from kernels.threads import HAS_NUMBA, spread

_COMPILE_FROM = 1 << 19  # costs: with fewer, importing numba (half a second) does not pay off
PART = 512  # rows that are added up in float32
_ROWS = 4
_COLUMNS = 512
_ROW_BLOCK = 1024
_WARPS = 4


def sinkhorn_sweep(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> list[Tensor]:
    """Returns logarithms of row sums, float32 [n], and column sums with the new f, float64 [m].

    q: int16 or float32 [n, m], whose rows may be padded on a GPU (`kernels.launch.padded`). kappa:
    float32 [n], step / eps. f: float32 [n], row potentials minus the cost's offset, over eps. g:
    float32 [m], column potentials over eps, plus log b. So p_ij = exp(f_i + g_j - kappa_i q_ij).
    Column sums are sum_i p_ij / s_i; the caller multiplies them by a. Sums that overflow are
    infinite or NaN.
    """
    if q.is_cuda:
        return _sweep(q, f, g, kappa)
    return (_on_threads if _compiled(q) else _on_strips)(q, f, g, kappa)


def row_sums(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> Tensor:
    """Returns logarithms of row sums, float32 [n]; arguments as in `sinkhorn_sweep`."""
    if q.is_cuda:
        return _row_sums(q, f, g, kappa)[0]
    return _rows_on_threads(q, f, g, kappa) if _compiled(q) else _on_strips(q, f, g, kappa)[0]


def _compiled(q: Tensor) -> bool:
    return HAS_NUMBA and q.device.type == "cpu" and q.numel() >= _COMPILE_FROM


def _on_strips(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> list[Tensor]:
    """In float64 if f is. Strips of 32 rows stay in cache. Exponents are clamped at -87 because
    subnormal numbers are slow."""
    log_s, columns = torch.empty_like(f), torch.zeros_like(g, dtype=torch.float64)
    for start in range(0, len(q), 32):
        rows = slice(start, start + 32)
        p = torch.exp((f[rows, None] + g - kappa[rows, None] * q[rows]).clamp_(min=-87.0))
        s = p.sum(1)
        log_s[rows] = s.log()
        columns += p.T @ s.reciprocal()
    return [log_s, columns]


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
    """Row sums of ROWS rows per program, which share a read of g.

    Stores the sums' logarithms, and f minus them, with which rows sum to 1. The last program may
    repeat the last row. Only the end of a row is masked: with a mask that depends on a length that
    is not a multiple of 16, no access is wide.
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
    """Some columns of PART rows per program; with this f, rows sum to 1."""
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
    """The logarithms of row sums, and f minus them."""
    q, f, g, kappa = rows_apart(q), f.contiguous(), g.contiguous(), kappa.contiguous()
    log_s, shares = torch.empty_like(f), torch.empty_like(f)
    grid = (-(-len(q) // _ROWS),)
    launch.start(
        _rows_kernel,
        grid,
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
    grid = (-(-m // _COLUMNS), len(columns))
    launch.start(
        _columns_kernel,
        grid,
        *(q, shares, g, kappa, columns, pitch, n, m),
        PART=PART,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
    )
    return [log_s, columns[:, :m].sum(0, dtype=torch.float64)]
