"""From a strip of a float32 product to 16-bit costs in two readings.

A cost needs norms, a label term and no negative rounding, 16 bits of it the row's minimum, maximum
and step: a dozen passes as PyTorch's operators, each over a strip that no longer fits the cache.
Here a row is read twice, the second time from cache, and written once; bytes moved: 6 a cost. On
the CPU two compiled loops take 0.11 CPU-seconds for 10k x 10k samples, beside 2 for their product
at 768 dimensions.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, padded, rows_apart, tl
from kernels.threads import HAS_NUMBA

_COMPILE_FROM = 1 << 18  # costs of a strip: fewer do not repay importing numba
_COLUMNS = 2048
_WARPS = 4
_LEAST = torch.finfo(torch.float32).tiny  # of steps: rows of one cost have none


def quantize(
    product: Tensor, row_term: Tensor, column_terms: Tensor, which: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q int16 [n, m], low and step float32 [n]: low_i + step_i (q_ij + 32768) is up to half a step
    the cost max(product_ij + column_terms[which_i, j] + row_term_i, 0).

    product: float32 [n, m], which may be overwritten; row_term: float32 [n];
    column_terms: float32 [k, m];
    which: int64 [n] in [0, k).
    """
    if product.is_cuda:
        q, low, step = _quantize(product, row_term, column_terms, which)
        return q, low, step
    if not (HAS_NUMBA and product.device.type == "cpu" and product.numel() >= _COMPILE_FROM):
        q, low, step = reference.quantize(product, row_term, column_terms, which)
        return q, low, step
    from kernels.transport import loops

    q = torch.empty(product.shape, dtype=torch.int16)
    low, step = torch.empty(2, len(product))
    tensors = product, row_term, column_terms, which, q, low, step
    loops.quantize(*(tensor.numpy() for tensor in tensors))
    return q, low, step


@jit
def _costs(line, columns, at, m, term, MASKED: tl.constexpr):
    if MASKED:
        product = tl.load(line + at, mask=at < m, other=0.0)
        column = tl.load(columns + at, mask=at < m, other=0.0)
    else:
        product = tl.load(line + at)
        column = tl.load(columns + at)
    return tl.maximum(product + (column + term), 0.0)


@jit(do_not_specialize=["m"])
def _quantize_kernel(
    product,
    row_term,
    column_terms,
    which,
    q,
    low,
    step,
    pitch,
    term_pitch,
    q_pitch,
    m,
    LEAST: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A row a program, whose end alone is masked: see `kernels.transport.sweep`.

    Quotients are rounded correctly, by `div_rn`: Triton's own division of float32 is off by up to
    two units in the last place, of 65535 steps by a hundredth of a step.
    """
    row = tl.program_id(0).to(tl.int64)
    line, into = product + row * pitch, q + row * q_pitch
    columns = column_terms + tl.load(which + row) * term_pitch
    term = tl.load(row_term + row)
    whole = m // COLUMNS * COLUMNS
    end = whole + tl.arange(0, COLUMNS)
    cost = _costs(line, columns, end, m, term, True)
    smallest = tl.where(end < m, cost, float("inf"))
    largest = tl.where(end < m, cost, 0.0)
    for start in tl.range(0, whole, COLUMNS, num_stages=3):
        cost = _costs(line, columns, start + tl.arange(0, COLUMNS), m, term, False)
        smallest = tl.minimum(smallest, cost)
        largest = tl.maximum(largest, cost)
    least = tl.min(smallest, 0)
    spread = tl.max(largest, 0) - least  # pyright: ignore[reportOperatorIssue]
    scale = tl.maximum(tl.div_rn(spread, 65535.0), LEAST)
    tl.store(low + row, least)
    tl.store(step + row, scale)
    inverse = tl.div_rn(1.0, scale)
    for start in tl.range(0, whole, COLUMNS, num_stages=3):
        at = start + tl.arange(0, COLUMNS)
        cost = _costs(line, columns, at, m, term, False)
        steps = tl.floor((cost - least) * inverse + 0.5) - 32768.0
        tl.store(into + at, steps.to(tl.int16))
    steps = tl.floor((_costs(line, columns, end, m, term, True) - least) * inverse + 0.5) - 32768.0
    tl.store(into + end, steps.to(tl.int16), mask=end < m)


@triton_op("rib::quantize", mutates_args=())
def _quantize(
    product: Tensor, row_term: Tensor, column_terms: Tensor, which: Tensor
) -> list[Tensor]:
    product, column_terms = rows_apart(product), rows_apart(column_terms)
    q = padded(product.shape, product, torch.int16)
    low, step = torch.empty_like(row_term), torch.empty_like(row_term)
    launcher(_quantize_kernel)[(len(product),)](
        *(product, row_term, column_terms, which, q, low, step),
        *(product.stride(0), column_terms.stride(0), q.stride(0), product.shape[1]),
        LEAST=_LEAST,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
    )
    return [q, low, step]


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    floats = ("product", "row_term", "column_terms", "low", "step")
    return [
        {
            "name": "quantize",
            "fn": _quantize_kernel,
            "signature": dict.fromkeys(floats, "*fp32")
            | {"which": "*i64", "q": "*i16"}
            | dict.fromkeys(("pitch", "term_pitch", "q_pitch", "m"), "i32"),
            "constexprs": {"LEAST": _LEAST, "COLUMNS": _COLUMNS},
            "num_warps": _WARPS,
            "bytes_per_element": 6,
        }
    ]
