"""From a strip of float32 costs to 16 bits in two readings.

16-bit costs need a row's minimum, maximum and step: half a dozen passes as PyTorch's operators,
each over a strip that no longer fits the cache. Here a row is read twice, the second time from
cache where it fits, and written once; bytes moved: 6 a cost, or 10 on a GPU whose cache is smaller
than the rows that its programs work on at once.

On a GPU the strip is that of `cost_rows` (`quantize_costs`). On the CPU it is a library's product,
to which norms and a label term are still to be added (`quantize`): two compiled loops take 0.11
CPU-seconds for 10k x 10k samples, beside 2 for their product at 768 dimensions.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, tl
from kernels.threads import HAS_NUMBA

_COMPILE_FROM = 1 << 18  # costs of a strip: fewer do not repay importing numba
_COLUMNS = 2048
_WARPS = 4
_LEAST = torch.finfo(torch.float32).tiny  # of steps: rows of one cost have none


def quantize(
    product: Tensor, row_term: Tensor, column_terms: Tensor, which: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """Fills q, int16 [n, m], and gives low and step, float32 [n]: low_i + step_i (q_ij + 32768) is
    up to half a step the cost max(product_ij + column_terms[which_i, j] + row_term_i, 0).

    product: float32 [n, m], which may be overwritten; row_term: float32 [n];
    column_terms: float32 [k, m];
    which: int64 [n] in [0, k).
    """
    if not (HAS_NUMBA and product.device.type == "cpu" and product.numel() >= _COMPILE_FROM):
        filled, low, step = reference.quantize(product, row_term, column_terms, which)
        q.copy_(filled)
        return low, step
    from kernels.transport import loops

    low, step = torch.empty(2, len(product))
    tensors = product, row_term, column_terms, which, q, low, step
    loops.quantize(*(tensor.numpy() for tensor in tensors))
    return low, step


def quantize_costs(cost: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Fills q and gives low and step, as `quantize`, of float32 costs [n, m] that are finished; on
    a GPU rows of both may lie apart. The costs may be overwritten.
    """
    if cost.is_cuda:
        low, step = _quantize(cost, q)
        return low, step
    filled, low, step = reference.quantize_costs(cost)
    q.copy_(filled)
    return low, step


@jit(do_not_specialize=["m"])
def _quantize_kernel(
    costs, q, low, step, pitch, q_pitch, m, LEAST: tl.constexpr, COLUMNS: tl.constexpr
):
    """A row a program, whose end alone is masked: see `kernels.transport.sweep`.

    Quotients are rounded correctly, by `div_rn`: Triton's own division of float32 is off by up to
    two units in the last place, of 65535 steps by a hundredth of a step.
    """
    row = tl.program_id(0).to(tl.int64)
    line, into = costs + row * pitch, q + row * q_pitch
    whole = m // COLUMNS * COLUMNS
    end = whole + tl.arange(0, COLUMNS)
    last = tl.load(line + end, mask=end < m, other=0.0)
    smallest = tl.where(end < m, last, float("inf"))
    largest = last
    for start in tl.range(0, whole, COLUMNS, num_stages=3):
        cost = tl.load(line + start + tl.arange(0, COLUMNS))
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
        steps = tl.floor((tl.load(line + at) - least) * inverse + 0.5) - 32768.0
        tl.store(into + at, steps.to(tl.int16))
    steps = tl.floor((last - least) * inverse + 0.5) - 32768.0
    tl.store(into + end, steps.to(tl.int16), mask=end < m)


@triton_op("rib::quantize", mutates_args=("q",))
def _quantize(cost: Tensor, q: Tensor) -> list[Tensor]:
    n, m = cost.shape
    low, step = cost.new_empty(n), cost.new_empty(n)
    launcher(_quantize_kernel)[(n,)](
        *(cost, q, low, step, cost.stride(0), q.stride(0), m),
        LEAST=_LEAST,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
    )
    return [low, step]


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`."""
    return [
        {
            "name": "quantize",
            "fn": _quantize_kernel,
            "signature": dict.fromkeys(("costs", "low", "step"), "*fp32")
            | {"q": "*i16"}
            | dict.fromkeys(("pitch", "q_pitch", "m"), "i32"),
            "constexprs": {"LEAST": _LEAST, "COLUMNS": _COLUMNS},
            "num_warps": _WARPS,
            "bytes_per_element": 6,
        }
    ]
