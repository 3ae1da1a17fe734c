"""One alternating Sinkhorn iteration for one read of the stored cost matrix.

The textbook reads the matrix twice an iteration: once for the row potentials, once for the column
potentials. But as soon as a row is summed, its new potential is known, and its contribution to the
column sums can be added while the row is in cache. With p_ij = b_j exp((f_i + g_j - C_ij) / eps):

    s_i = sum_j p_ij            f_i <- f_i - eps log s_i
    c_j = sum_i a_i p_ij / s_i  (the column sums with the new f)

and g_j <- g_j - eps log(c_j / b_j) completes the iteration. The old f stabilises the
exponential, so no maximum is searched. Column sums are kept apart by blocks of rows (classes),
which costs nothing and tells how much mass goes from block to block. On the CPU the loop is
compiled by numba where it is installed. On a GPU rows are summed strip by strip, and each launch
also adds up the columns of the strip before, which is still in the L2 cache: one launch a strip, no
barrier, no atomics, and so the same sums every time. Bytes moved: 2 n m (4 n m for float32 copies),
and 4 m for each block.

Source: Cuturi 2013.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, tl
from kernels.threads import HAS_NUMBA, spread

_COMPILE_FROM = 1 << 19  # costs: what importing numba (half a second) would have to repay
_STRIP_BYTES = 16 << 20  # of q on a GPU: two strips share the L2 cache of an A100 (40 MB)
_ROWS = 4
_COLUMNS = 512
_ROW_BLOCK = 2048
_WARPS = 4


def sinkhorn_sweep(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor, bounds: Tensor) -> list[Tensor]:
    """Row sums' logarithms, float32 [n], and column sums of the plan with the new f, float32 [k, m]
    for each of k blocks of rows.

    q: int16 or float32 [n, m]; kappa: float32 [n], step over eps; f: float32 [n], the row
    potentials less the cost's offset, over eps; g: float32 [m], the column potentials over eps
    plus log b; so that p_ij = exp(f_i + g_j - kappa_i q_ij). bounds: int64 [k + 1] on the CPU,
    rising from 0 to n: where blocks begin and end. A block's sums are sum_i p_ij / s_i: the caller
    multiplies them by a. Sums that overflow come back as infinity or NaN.
    """
    if q.is_cuda:
        return _sweep(q, f, g, kappa, bounds)
    if HAS_NUMBA and q.device.type == "cpu" and q.numel() >= _COMPILE_FROM:
        return _on_threads(q, f, g, kappa, bounds)
    return reference.sinkhorn_sweep(q, f, g, kappa, bounds)


def within(bounds: Tensor, rows: slice) -> tuple[slice, Tensor]:
    """The blocks that some rows lie in, and their bounds counted from the first of the rows."""
    first = int(torch.searchsorted(bounds, rows.start, right=True)) - 1
    last = int(torch.searchsorted(bounds, rows.stop))
    return slice(first, last), bounds[first : last + 1].clamp(rows.start, rows.stop) - rows.start


def _on_threads(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor, bounds: Tensor) -> list[Tensor]:
    from kernels.transport import loops

    threads = min(torch.get_num_threads(), len(q))
    rows = -(-len(q) // threads)
    log_s = torch.empty_like(f)

    def work(start: int) -> tuple[slice, Tensor]:
        part = slice(start, min(start + rows, len(q)))
        blocks, inside = within(bounds, part)
        columns = torch.zeros(len(inside) - 1, len(g))
        tensors = (
            q[part],
            f[part],
            g,
            kappa[part],
            inside,
            log_s[part],
            columns,
            torch.empty_like(g),
        )
        loops.sweep(*(tensor.numpy() for tensor in tensors))
        return blocks, columns

    if threads == 1:
        return [log_s, work(0)[1]]
    columns = torch.zeros(len(bounds) - 1, len(g))
    for blocks, part in spread(work, [(start,) for start in range(0, len(q), rows)], threads):
        columns[blocks] += part
    return [log_s, columns]


@jit
def _sweep_kernel(
    q,
    f,
    g,
    kappa,
    log_s,
    weights,
    bounds,
    columns,
    m,
    sum_from,
    sum_to,
    add_from,
    add_to,
    first_block,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
):
    """The first programs sum a row each, from sum_from; the others add up rows add_from..add_to,
    those of one block each, beginning with first_block."""
    rows_to_sum = sum_to - sum_from
    program = tl.program_id(0)
    if program < rows_to_sum:
        row = sum_from + program
        line = q + row.to(tl.int64) * m
        potential = tl.load(f + row)
        scale = tl.load(kappa + row)
        partial = tl.zeros([ROW_BLOCK], dtype=tl.float32)
        for start in range(0, m, ROW_BLOCK):
            at = start + tl.arange(0, ROW_BLOCK)
            price = tl.load(g + at, mask=at < m, other=float("-inf"))
            cost = tl.load(line + at, mask=at < m, other=0).to(tl.float32)
            partial += tl.exp(potential + price - scale * cost)
        total = tl.sum(partial, 0)
        tl.store(log_s + row, tl.log(total))
        tl.store(weights + row, 1.0 / total)  # pyright: ignore[reportOperatorIssue]
    else:
        parts = tl.cdiv(m, COLUMNS)
        block = first_block + (program - rows_to_sum) // parts
        at = (program - rows_to_sum) % parts * COLUMNS + tl.arange(0, COLUMNS)
        valid = at < m
        price = tl.load(g + at, mask=valid, other=float("-inf"))
        added = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        stop = tl.minimum(tl.load(bounds + block + 1), add_to)
        for start in range(tl.maximum(tl.load(bounds + block), add_from), stop, ROWS):
            rows = start + tl.arange(0, ROWS)
            inside = rows < stop
            potential = tl.load(f + rows, mask=inside, other=0.0)
            scale = tl.load(kappa + rows, mask=inside, other=0.0)
            weight = tl.load(weights + rows, mask=inside, other=0.0)
            cost = tl.load(
                q + rows.to(tl.int64)[:, None] * m + at[None, :],
                mask=inside[:, None] & valid[None, :],
                other=0,
            ).to(tl.float32)
            value = tl.exp(potential[:, None] + price[None, :] - scale[:, None] * cost)
            added += tl.where(inside[:, None], weight[:, None] * value, 0.0)
        into = columns + block.to(tl.int64) * m + at
        tl.store(into, tl.load(into, mask=valid, other=0.0) + tl.sum(added, 0), mask=valid)


@triton_op("rib::sinkhorn_sweep", mutates_args=())
def _sweep(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor, bounds: Tensor) -> list[Tensor]:
    n, m = q.shape
    q, f, g, kappa = (tensor.contiguous() for tensor in (q, f, g, kappa))
    log_s, weights = torch.empty_like(f), torch.empty_like(f)
    columns = g.new_zeros(len(bounds) - 1, m)
    on_device = bounds.to(q.device, torch.int32, non_blocking=True)
    strip = max(_ROWS, _STRIP_BYTES // (m * q.element_size()) // _ROWS * _ROWS)
    added = summed = 0
    while added < n:
        sum_to = min(summed + strip, n)
        blocks, _ = within(bounds, slice(added, summed))
        adding = (blocks.stop - blocks.start) * -(-m // _COLUMNS) if summed else 0
        launcher(_sweep_kernel)[(sum_to - summed + adding,)](
            q,
            f,
            g,
            kappa,
            log_s,
            weights,
            on_device,
            columns,
            m,
            summed,
            sum_to,
            added,
            summed,
            blocks.start,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            ROW_BLOCK=_ROW_BLOCK,
            num_warps=_WARPS,
        )
        added, summed = summed, sum_to
    return [log_s, columns]


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    sizes = ("m", "sum_from", "sum_to", "add_from", "add_to", "first_block")
    floats = ("f", "g", "kappa", "log_s", "weights", "columns")
    return [
        {
            "name": f"sinkhorn_sweep {kind}",
            "fn": _sweep_kernel,
            "signature": {"q": f"*{short}"}
            | dict.fromkeys(floats, "*fp32")
            | {"bounds": "*i32"}
            | dict.fromkeys(sizes, "i32"),
            "constexprs": {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "ROW_BLOCK": _ROW_BLOCK},
            "num_warps": _WARPS,
            "bytes_per_element": moved,
        }
        for kind, short, moved in (("int16", "i16", 2), ("float32", "fp32", 4))
    ]
