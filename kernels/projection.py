"""Selective projection decay: what a step took too far from an anchor is taken back.

A parameter theta with gradient g is stepped to theta' by any optimizer. Where sum(g d) > 0 for its
offset d = theta - anchor,

    theta'' = theta' - lam r d',   r = clamp((|d'| - |d|) / |d'|, 0, 1)

`offset_products_` sums what decides, g d and d d, before the step, and d' d' after it; `project_`
draws back. On CUDA each is one launch for all parameters. Bytes moved per fp32 parameter: 12 before
the step, 8 after it, and 12 where a parameter is drawn back.

Source: Tian et al. 2024, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import reference, tables
from kernels.launch import jit, launcher, tl
from kernels.tables import Row, Table, place, sum_in_order, tensor_at


@torch.no_grad()
def offset_products_(
    thetas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    grads: Sequence[Tensor] | None = None,
    *,
    out: Tensor,
) -> None:
    """For each parameter sum(g d), and in a second row sum(d d); without grads sum(d d) alone.

    thetas, anchors, grads: contiguous fp32 tensors, of one shape for each of T parameters, all on
    one device. out: float64 [2, T] or, without grads, [1, T], contiguous, on the same device; it is
    overwritten. Products are fp32, sums float64 in one order. The host does not wait.

    Raises ValueError, naming the tensor, for a shape, dtype, device or layout that does not fit.
    """
    rows = tables.rows({"theta": thetas, "anchor": anchors, "grad": grads})
    _check("out", out, 1 if grads is None else 2, thetas)
    if not rows:
        return
    (_products if thetas[0].is_cuda else _products_on_cpu)(rows, out)


@torch.no_grad()
def project_(thetas: Sequence[Tensor], anchors: Sequence[Tensor], sums: Tensor, lam: float) -> None:
    """Draws the stepped parameters theta' back, in place.

    thetas, anchors: as for `offset_products_`. sums: float64 [3, T], contiguous, on the same
    device: sum(g d), sum(d d) and sum(d' d'), which may be those of whole parameters where thetas
    are pieces. lam: 1 brings a parameter back to its distance before the step.

    Raises ValueError, naming the tensor, for a shape, dtype, device or layout that does not fit.
    """
    rows = tables.rows({"theta": thetas, "anchor": anchors})
    _check("sums", sums, 3, thetas)
    if not rows:
        return
    (_draw_back if thetas[0].is_cuda else _draw_back_on_cpu)(rows, sums, lam)


def _check(name: str, sums: Tensor, rows: int, thetas: Sequence[Tensor]) -> None:
    shape = [rows, len(thetas)]
    if list(sums.shape) != shape or sums.dtype != torch.float64 or not sums.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous float64 {shape}, not {sums.dtype} {list(sums.shape)} with "
            f"strides {list(sums.stride())}"
        )
    if thetas and sums.device != thetas[0].device:
        raise ValueError(f"{name} is on {sums.device}, but theta is on {thetas[0].device}")


def _products_on_cpu(rows: list[Row], out: Tensor) -> None:
    for into, row in zip(out.unbind(1), rows, strict=True):
        into.copy_(reference.offset_products(*row))


def _draw_back_on_cpu(rows: list[Row], sums: Tensor, lam: float) -> None:
    for (theta, anchor), of_parameter in zip(rows, sums.unbind(1), strict=True):
        reference.project_(theta, anchor, of_parameter, lam)


@jit
def _offset(pointers, count, number, at, valid, ALIGNED: tl.constexpr):
    theta = tensor_at(pointers, count, 0, number, ALIGNED) + at
    anchor = tensor_at(pointers, count, 1, number, ALIGNED) + at
    x = tl.load(theta, mask=valid, other=0.0)
    return x, x - tl.load(anchor, mask=valid, other=0.0)


@jit
def _block_sums(pointers, count, number, at, valid, HAS_GRAD: tl.constexpr, ALIGNED: tl.constexpr):
    """A block's sum(g d) and sum(d d)."""
    _, offset = _offset(pointers, count, number, at, valid, ALIGNED)
    ascent = 0.0
    if HAS_GRAD:
        grad = tensor_at(pointers, count, 2, number, ALIGNED) + at
        g = tl.load(grad, mask=valid, other=0.0)
        ascent = tl.sum((g * offset).to(tl.float64), 0)
    return ascent, tl.sum((offset * offset).to(tl.float64), 0)


@jit(do_not_specialize=("count", "blocks"))
def _products_kernel(
    pointers,
    owners,
    firsts,
    sizes,
    arrived,
    count,
    blocks,
    partials,
    out,
    HAS_GRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number, start, left = place(owners, firsts, sizes, BLOCK)
    at = start + tl.arange(0, BLOCK)
    if left >= BLOCK:  # without a mask that depends on a size, loads are wide
        valid = tl.full((BLOCK,), True, tl.int1)
        ascent, square = _block_sums(pointers, count, number, at, valid, HAS_GRAD, ALIGNED)
    else:
        valid = at < start + left
        ascent, square = _block_sums(pointers, count, number, at, valid, HAS_GRAD, ALIGNED)
    tl.store(partials + tl.program_id(0), square)
    if HAS_GRAD:
        tl.store(partials + blocks + tl.program_id(0), ascent)
    first = tl.load(firsts + number)
    programs = tl.maximum(tl.cdiv(tl.load(sizes + number), BLOCK), 1).to(tl.int32)
    if tl.atomic_add(arrived + number, 1) == programs - 1:  # the parameter's last program
        total = sum_in_order(partials, first, programs, BLOCK)
        if HAS_GRAD:
            tl.store(out + number, sum_in_order(partials, blocks + first, programs, BLOCK))
            tl.store(out + count + number, total)
        else:
            tl.store(out + number, total)
        tl.store(arrived + number, 0)  # for the next launch


@jit
def _move(pointers, count, number, at, valid, share, ALIGNED: tl.constexpr):
    x, offset = _offset(pointers, count, number, at, valid, ALIGNED)
    theta = tensor_at(pointers, count, 0, number, ALIGNED) + at
    tl.store(theta, x - share * offset, mask=valid)


@jit(do_not_specialize=("count", "blocks"))
def _project_kernel(
    pointers,
    owners,
    firsts,
    sizes,
    arrived,
    count,
    blocks,
    sums,
    lam,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number, start, left = place(owners, firsts, sizes, BLOCK)
    ascent = tl.load(sums + number)
    before = tl.sqrt(tl.load(sums + count + number))
    after = tl.sqrt(tl.load(sums + 2 * count + number))
    if (ascent > 0.0) & (after > 0.0):
        ratio = (after - before) / after
        share = (lam * tl.where(ratio < 0.0, 0.0, ratio)).to(tl.float32)
        at = start + tl.arange(0, BLOCK)
        if share != 0.0:  # also where it is no number
            if left >= BLOCK:
                valid = tl.full((BLOCK,), True, tl.int1)
                _move(pointers, count, number, at, valid, share, ALIGNED)
            else:
                _move(pointers, count, number, at, at < start + left, share, ALIGNED)


def _products(rows: list[Row], out: Tensor) -> None:
    table = Table.of(rows)
    launcher(_products_kernel)[(table.blocks,)](
        *table.arguments,
        out.new_empty(2, table.blocks),
        out,
        HAS_GRAD=rows[0][2] is not None,
        **table.options,
    )


def _draw_back(rows: list[Row], sums: Tensor, lam: float) -> None:
    table = Table.of(rows)
    launcher(_project_kernel)[(table.blocks,)](*table.arguments, sums, lam, **table.options)


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    doubles = dict.fromkeys(("partials", "out", "sums"), "*fp64")
    kernels = (
        ("offset_products_ before", _products_kernel, {"HAS_GRAD": True}, 3, 0),
        ("offset_products_ after", _products_kernel, {"HAS_GRAD": False}, 2, 0),
        ("project_", _project_kernel, {}, 2, 1),
    )
    return [
        {
            "name": name,
            "fn": fn,
            "signature": tables.SIGNATURE | doubles | {"lam": "fp32"},
            "constexprs": flags | tables.CONSTANTS,
            "num_warps": tables.WARPS,
            "bytes_per_element": 4 * (read + written),
            "streams": (read, written),
        }
        for name, fn, flags, read, written in kernels
    ]
