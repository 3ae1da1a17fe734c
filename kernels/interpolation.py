"""K weighted sums of M models with one read of the models.

WiSE-FT needs one model per alpha between two parents; a soup needs the mean of many. Computed one
at a time, each output reads its parents again. This kernel computes

    out[k] = sum_m weights[k, m] * parents[m]

reading each parent once and writing each output once: 4 (M + K) bytes per parameter. More than
`MAX_OUTPUTS` outputs are computed in groups, and each group reads the parents.

A weight of exactly 0 excludes its parent: an inf or NaN in it does not spread. A row with one
weight of exactly 1 and zeros elsewhere gives that parent bit for bit.

Predicted worth on a GPU: two milliseconds of a column.

Sources: Wortsman et al. 2022 (WiSE-FT, equation 1); Wortsman et al. 2022 (model soups).
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import launch
from kernels.launch import jit, tl

MAX_OUTPUTS = 16  # per pass: 32 take 200 registers per thread, and occupancy gets too low
_WARPS = 8
# Elements (4 MiB of fp32): the parents' chunks stay in the last-level cache for all outputs, and
# threads seldom wait for each other (a quarter of this is far slower on a busy machine).
_CHUNK = 1 << 20
_ALIGNMENT = 16  # elements: aligns each tensor of a flat state dict to at least 16 bytes


@torch.no_grad()
def interpolate(parents: Tensor, weights: Tensor) -> Tensor:
    """Returns the models out[k] = sum_m weights[k, m] * parents[m], fp32 [K, P].

    parents: fp32 [M, P], contiguous. weights: [K, M], any floating dtype and device.

    CUDA tensors use the Triton kernel; others take torch's operators in cache-sized chunks.

    Raises ValueError, naming the argument, for an invalid shape, dtype or layout.
    """
    if parents.ndim != 2 or parents.dtype != torch.float32 or not parents.is_contiguous():
        raise ValueError(
            "parents must be contiguous float32 [M, P], not "
            f"{parents.dtype} {list(parents.shape)} with strides {list(parents.stride())}"
        )
    count, numel = parents.shape
    if weights.ndim != 2 or weights.shape[1] != count or not weights.is_floating_point():
        raise ValueError(
            f"weights must be floating [K, {count}], not {weights.dtype} {list(weights.shape)}"
        )
    out = parents.new_empty(weights.shape[0], numel)
    weights = weights.to(parents.device, torch.float32, non_blocking=True).contiguous()
    fill = _interpolate if parents.is_cuda else _on_cpu
    fill(parents, weights, out)
    return out


@torch.library.custom_op("rib::interpolate_on_cpu_", mutates_args=("out",))
def _on_cpu(parents: Tensor, weights: Tensor, out: Tensor) -> None:
    """One operator, because it reads the weights' values, which a compiled graph cannot."""
    for start in range(0, parents.shape[1], _CHUNK):
        columns = slice(start, start + _CHUNK)
        for row, row_weights in zip(out[:, columns], weights.tolist(), strict=True):
            pairs = zip(parents[:, columns], row_weights, strict=True)
            terms = [(parent, weight) for parent, weight in pairs if weight != 0.0]
            if not terms:
                row.zero_()
                continue
            (parent, weight), *rest = terms
            torch.mul(parent, weight, out=row)
            for parent, weight in rest:
                row.add_(parent, alpha=weight)


@jit(do_not_specialize=["outputs"])
def _interpolate_kernel(
    parents,
    weights,
    out,
    n,
    outputs,
    PARENTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = at < n
    # Start from -0.0, the identity of addition: 0.0 + -0.0 would lose the sign.
    total = tl.zeros((ROWS, BLOCK), tl.float32) * -1.0
    parent = parents + at
    for m in tl.range(0, PARENTS, num_stages=3):
        theta = tl.load(parent, mask=valid, other=0.0)[None, :]
        weight = tl.load(weights + row * PARENTS + m, mask=row < outputs, other=0.0)[:, None]
        total = tl.where(weight == 0.0, total, total + weight * theta)
        parent += n
    tl.store(
        out + row[:, None] * n + at[None, :],
        total,
        mask=(row < outputs)[:, None] & valid[None, :],
    )


def _tile(outputs: int) -> dict[str, int]:
    """Outputs and parameters per program: at most 64 sums per thread."""
    rows = min(1 << (outputs - 1).bit_length(), MAX_OUTPUTS)
    return {"ROWS": rows, "BLOCK": max(min(16384 // rows, 4096), 1024)}


@triton_op("rib::interpolate_", mutates_args=("out",))
def _interpolate(parents: Tensor, weights: Tensor, out: Tensor) -> None:
    outputs, numel = out.shape
    if not out.numel():
        return
    tile = _tile(outputs)
    launch.start(
        _interpolate_kernel,
        (-(-numel // tile["BLOCK"]), -(-outputs // tile["ROWS"])),
        parents,
        weights,
        out,
        numel,
        outputs,
        PARENTS=parents.shape[0],
        **tile,
        num_warps=_WARPS,
    )


@dataclass(frozen=True)
class Layout:
    """Where each tensor is in a flat model.

    names: the state dict's keys, in order. places: offset (in elements) and shape of each floating
    tensor. copies: the other tensors (counters, indices), copied from the first parent. numel: P.
    """

    names: tuple[str, ...]
    places: dict[str, tuple[int, torch.Size]]
    copies: dict[str, Tensor]
    numel: int


@torch.no_grad()
def flatten(state_dicts: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Layout]:
    """Returns state dicts of one architecture as parents, fp32 [M, P], and their layout.

    Floating tensors (fp32, fp16, bf16) are converted to fp32, which is exact. Gaps between tensors
    are zero. The result is on the device of the first floating tensor.

    Raises ValueError, naming the key, if dicts differ in keys, shapes or dtypes, or for a dtype
    that fp32 cannot hold; also if there are no dicts.
    """
    if not state_dicts:
        raise ValueError("no state dict to flatten")
    first = state_dicts[0]
    places: dict[str, tuple[int, torch.Size]] = {}
    numel = 0
    for name, tensor in first.items():
        if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16):
            places[name] = (numel, tensor.shape)
            numel += -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT
        elif tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"{name!r} is {tensor.dtype}, which float32 cannot hold exactly")
    for index, other in enumerate(state_dicts[1:], start=1):
        _check_same(first, other, index)
    device = next((first[name].device for name in places), torch.device("cpu"))
    parents = torch.zeros(len(state_dicts), numel, device=device)
    for row, state in zip(parents, state_dicts, strict=True):
        for name, (offset, shape) in places.items():
            row[offset : offset + shape.numel()].view(shape).copy_(state[name])
    copies = {name: tensor.clone() for name, tensor in first.items() if name not in places}
    return parents, Layout(tuple(first), places, copies, numel)


def _check_same(first: Mapping[str, Tensor], other: Mapping[str, Tensor], index: int) -> None:
    differing = sorted(first.keys() ^ other.keys())
    if differing:
        name = differing[0]
        missing = f"state dict {index}" if name in first else "the first state dict"
        raise ValueError(
            f"{name!r} is missing from {missing} ({len(differing)} keys differ): "
            "only models of one architecture can be averaged"
        )
    for name, tensor in first.items():
        if other[name].shape != tensor.shape or other[name].dtype != tensor.dtype:
            raise ValueError(
                f"{name!r} is {other[name].dtype} {list(other[name].shape)} in state dict {index}, "
                f"but {tensor.dtype} {list(tensor.shape)} in the first"
            )


def views(row: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Returns the state dict of a flat model [P]; floating tensors are views of it, in its dtype.

    Other tensors are copies of the first parent's. Raises ValueError if the length differs.
    """
    if row.shape != (layout.numel,):
        raise ValueError(f"a model of this layout is flat [{layout.numel}], not {list(row.shape)}")
    state = {}
    for name in layout.names:
        if name in layout.places:
            offset, shape = layout.places[name]
            state[name] = row[offset : offset + shape.numel()].view(shape)
        else:
            state[name] = layout.copies[name].clone()
    return state
