"""What the host has to know of an iteration, three numbers that it reads at once.

Eight operators of PyTorch would reduce vectors of 0.4 MB each, and each of them takes longer to
launch than to run. Here one program reads all of them: 20 n + 16 m bytes.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import reference
from kernels.launch import jit, launcher, tl

_BLOCK = 4096
_WARPS = 16


def progress(f: Tensor, g: Tensor, log_s: Tensor, ratio: Tensor) -> Tensor:
    """[max |log_s|, mean(f) + mean(g), mean |ratio - 1|], float64; the first is NaN where a log_s
    is.

    f: float64 [n], log_s: float32 [n]; g, ratio: float64 [m].
    """
    return (_progress if f.is_cuda else reference.progress)(f, g, log_s, ratio)


@jit(do_not_specialize=["n", "m"])
def _progress_kernel(f, g, log_s, ratio, out, n, m, BLOCK: tl.constexpr):
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    unknown = tl.zeros([BLOCK], dtype=tl.float32)
    of_rows = tl.zeros([BLOCK], dtype=tl.float64)
    of_columns = tl.zeros([BLOCK], dtype=tl.float64)
    off = tl.zeros([BLOCK], dtype=tl.float64)
    for start in tl.range(0, n, BLOCK, num_stages=2):
        at = start + tl.arange(0, BLOCK)
        of_rows += tl.load(f + at, mask=at < n, other=0.0)
        size = tl.abs(tl.load(log_s + at, mask=at < n, other=0.0))
        largest = tl.maximum(largest, size)
        unknown += 0.0 * size  # NaN where it is, which a maximum forgets
    for start in tl.range(0, m, BLOCK, num_stages=2):
        at = start + tl.arange(0, BLOCK)
        of_columns += tl.load(g + at, mask=at < m, other=0.0)
        off += tl.abs(tl.load(ratio + at, mask=at < m, other=1.0) - 1.0)
    most = tl.max(largest, 0) + tl.sum(unknown, 0)  # pyright: ignore[reportOperatorIssue]
    tl.store(out, most.to(tl.float64))
    tl.store(out + 1, tl.sum(of_rows, 0) / n + tl.sum(of_columns, 0) / m)
    tl.store(out + 2, tl.sum(off, 0) / m)


@triton_op("rib::transport_progress", mutates_args=())
def _progress(f: Tensor, g: Tensor, log_s: Tensor, ratio: Tensor) -> Tensor:
    out = torch.empty(3, dtype=torch.float64, device=f.device)
    launcher(_progress_kernel)[(1,)](
        *(tensor.contiguous() for tensor in (f, g, log_s, ratio)),
        *(out, len(f), len(g)),
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return out


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles; see `kernels.aot`. No mask is a multiple of 16."""
    doubles = dict.fromkeys(("f", "g", "ratio", "out"), "*fp64")
    return [
        {
            "name": "progress",
            "fn": _progress_kernel,
            "signature": doubles | {"log_s": "*fp32", "n": "i32", "m": "i32"},
            "constexprs": {"BLOCK": _BLOCK},
            "num_warps": _WARPS,
            "bytes_per_element": None,
            "aligned": False,
        }
    ]
