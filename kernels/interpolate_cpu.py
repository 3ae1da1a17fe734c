"""K weighted sums of M models on the CPU, compiled by numba: parents' chunks stay in cache.

Each output's chunk is made while the parents' are there, and written once; operators would write it
several times over. Bits are those of the reference. See `kernels.interpolate`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from kernels.threads import spread

# Elements: chunks of some parents and of a row of sums, together in a core's second cache.
_CHUNK = 8192
# Elements from which a thread's share repays waking it.
_SHARE = 1 << 17


def fill(parents: Tensor, weights: Tensor, out: Tensor) -> None:
    """out[k] = sum_m weights[k, m] * parents[m].

    parents: fp32 [M, P]; weights: fp32 [K, M]; out: fp32 or bf16 [K, P]; contiguous, on the CPU.
    """
    outputs, numel = out.shape
    threads = max(1, min(torch.get_num_threads(), outputs * numel // _SHARE))
    share = max(_CHUNK, -(-numel // (threads * _CHUNK)) * _CHUNK)
    given = parents.numpy(), weights.numpy()
    cuts = [(start, min(start + share, numel)) for start in range(0, numel, share)]
    if out.dtype == torch.float32:
        spread(_loops()["sums"], [(*given, out.numpy(), *cut) for cut in cuts], threads)
        return
    written = out.view(torch.uint16).numpy()
    rows = [torch.empty(_CHUNK) for _ in cuts]
    views = [(row.numpy(), row.view(torch.uint32).numpy()) for row in rows]
    pieces = [(*given, written, *cut, *view) for cut, view in zip(cuts, views, strict=True)]
    spread(_loops()["rounded_sums"], pieces, threads)


@functools.cache
def _loops() -> dict[str, Any]:
    """Both loops over columns start to stop; kept on disk, since compiling takes seconds."""
    import numba

    options = {"error_model": "numpy", "nogil": True, "cache": True}
    f32, u32 = numba.float32, numba.uint32
    chunk = _CHUNK

    @numba.njit(fastmath={"contract"}, **options)
    def add(parents, weights, to, start):
        """One row's sums for the columns from start, as many as `to` has."""
        first = True
        for m in range(len(weights)):
            weight = weights[m]
            if weight == f32(0.0):  # leaves a NaN in this parent alone
                continue
            parent = parents[m, start : start + len(to)]
            if first:
                for i in range(len(to)):
                    to[i] = parent[i] * weight
            else:
                for i in range(len(to)):
                    to[i] += parent[i] * weight
            first = False
        if first:
            to[:] = f32(0.0)

    @numba.njit(**options)
    def sums(parents, weights, out, start, stop):
        for at in range(start, stop, chunk):
            end = min(at + chunk, stop)
            for k in range(len(out)):
                add(parents, weights[k], out[k, at:end], at)

    @numba.njit(**options)
    def rounded_sums(parents, weights, out, start, stop, row, bits):
        """To bf16's bits, to nearest with ties to even; NaN stays NaN. bits: those of row."""
        for at in range(start, stop, chunk):
            end = min(at + chunk, stop)
            for k in range(len(out)):
                add(parents, weights[k], row[: end - at], at)
                to = out[k, at:end]
                for i in range(end - at):
                    half = u32(0x7FFF) + ((bits[i] >> u32(16)) & u32(1))
                    is_nan = (bits[i] & u32(0x7FFFFFFF)) > u32(0x7F800000)
                    to[i] = u32(0x7FC0) if is_nan else (bits[i] + half) >> u32(16)

    return {"sums": sums, "rounded_sums": rounded_sums}
