"""Quantizes a strip of costs to 16 bits with two reads.

This needs each row's minimum, maximum and step: half a dozen passes as PyTorch operators. A CPU can
afford them for a strip in its cache: 33 ms of the 0.9 s that 5000 x 5000 costs of 768 dimensions
take to compute. The GPU kernel reads a row twice and writes it once: 18 bytes per cost.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, tl

_COLUMNS = 2048
_WARPS = 4
_LEAST = torch.finfo(torch.float32).tiny  # smallest step, for rows of equal costs


def quantize(cost: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Fills q, int16 [n, m], and returns low and step, float64 [n].

    low_i + step_i (q_ij + 32768) differs from cost_ij by at most half a step. cost: float64 [n, m],
    which may be overwritten. On a GPU, rows of q may be padded.
    """
    if cost.is_cuda:
        low, step = _quantize(cost, q)
        return low, step
    filled, low, step = reference.quantize(cost)
    q.copy_(filled)
    return low, step


@jit(do_not_specialize=["m"])
def _quantize_kernel(
    costs, q, low, step, pitch, q_pitch, m, LEAST: tl.constexpr, COLUMNS: tl.constexpr
):
    """One row per program. Only the row's end is masked: see `kernels.transport.sweep`."""
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
    scale = tl.maximum(spread / 65535.0, LEAST)
    tl.store(low + row, least)
    tl.store(step + row, scale)
    inverse = 1.0 / scale
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
    """Specializations for the ahead-of-time gate; see `kernels.aot`."""
    return [
        {
            "name": "quantize",
            "fn": _quantize_kernel,
            "signature": dict.fromkeys(("costs", "low", "step"), "*fp64")
            | {"q": "*i16"}
            | dict.fromkeys(("pitch", "q_pitch", "m"), "i32"),
            "constexprs": {"LEAST": _LEAST, "COLUMNS": _COLUMNS},
            "num_warps": _WARPS,
            "bytes_per_element": 18,
        }
    ]
