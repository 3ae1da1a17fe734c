"""Squared per-example weight gradients, summed over the batch, without holding one per example.

For a linear layer y = W x over N tokens, example b's gradient is G_b = sum_n g_bn x_bn^T. The
diagonal Fisher needs sum_b G_b^2 (elementwise), and B x O x I numbers are far too many to hold. A
tile of W stays in registers (CPU: in cache) while the examples pass: form the tile of G_b, add its
square, go on. FLOPs: 2 B N O I, an ordinary weight gradient's. With one token
(g x^T)^2 = g^2 (x^2)^T, so the whole sum is one matrix product.

Bytes (Triton): a tile of O_t x I_t, 128 x 128 or 128 x 64, reads B N (O_t + I_t) elements, mostly
from L2, and writes each fp32 element of the result once a split of the batch; it is bound by the
matrix rate, not memory.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels.launch import jit, launcher, tl

# Rows of a CPU tile are chosen so that this many numbers stay in cache.
_CPU_TILE = 1 << 20
_BLOCK = 128
_WARPS = 8
# Programs to aim for (two for each multiprocessor of an H100), and the most partial sums held.
_PROGRAMS = 264
_MOST_SPLITS = 16


def outer_squares(output_gradients: Tensor, inputs: Tensor) -> Tensor:
    """sum_b (sum_n g_bno x_bni)^2, [O, I] in fp32 (fp64 for fp64 inputs).

    output_gradients: [B, N, O]; inputs: [B, N, I]; any strides, one dtype of fp32, bf16, fp16
    (CPU: fp64 too), products accumulated in fp32. On CUDA fp32 products take three TF32 passes,
    about fp32's precision, or one where torch.set_float32_matmul_precision allows TF32 ("high" or
    "medium"); bf16 and fp16 are multiplied as they are.

    Raises ValueError where shapes or dtypes do not agree, and for fp64 on CUDA.
    """
    g, x = output_gradients, inputs
    if g.ndim != 3 or x.ndim != 3 or g.shape[:2] != x.shape[:2] or g.dtype != x.dtype:
        raise ValueError(
            f"output gradients {list(g.shape)} {g.dtype} and inputs {list(x.shape)} {x.dtype} "
            "must be [B, N, O] and [B, N, I] of one dtype"
        )
    if g.is_cuda and g.dtype == torch.float64:
        raise ValueError("float64 is for the CPU: on CUDA cast to float32, bfloat16 or float16")
    if g.shape[1] == 1:
        return accumulable(g[:, 0]).square().t() @ accumulable(x[:, 0]).square()
    if g.is_cuda:
        return _outer_squares_cuda(g, x)
    return _outer_squares_cpu(accumulable(g), accumulable(x))


def accumulable(tensor: Tensor) -> Tensor:
    """In fp32, or wider where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _outer_squares_cpu(g: Tensor, x: Tensor) -> Tensor:
    outputs, inputs = g.shape[2], x.shape[2]
    total = g.new_zeros(outputs, inputs)
    rows = max(1, min(outputs, _CPU_TILE // max(inputs, 1)))
    for start in range(0, outputs, rows):
        tile = total[start : start + rows]
        product = torch.empty_like(tile)
        for g_example, x_example in zip(g[:, :, start : start + rows], x, strict=True):
            torch.mm(g_example.t(), x_example, out=product)
            tile.addcmul_(product, product)
    return total


@jit(do_not_specialize=["batch", "per_split"])
def _outer_squares_kernel(
    g,
    x,
    out,
    batch,
    tokens,
    outputs,
    inputs,
    per_split,
    g_batch,
    g_token,
    g_output,
    x_batch,
    x_token,
    x_input,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    split = tl.program_id(2)
    n = tl.arange(0, BLOCK_N)
    first = split * per_split
    g_tile = g + o.to(tl.int64)[:, None] * g_output
    x_tile = x + i.to(tl.int64)[None, :] * x_input
    steps = tl.cdiv(tokens, BLOCK_N)
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    product = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    # Examples and tokens in one loop, whose loads then run ahead over the end of an example.
    for k in tl.range(0, (min(first + per_split, batch) - first) * steps, num_stages=STAGES):
        example = (first + k // steps).to(tl.int64)
        token = k % steps * BLOCK_N + n
        left = token < tokens
        g_at = g_tile + example * g_batch + token[None, :] * g_token
        x_at = x_tile + example * x_batch + token[:, None] * x_token
        g_block = tl.load(g_at, mask=(o < outputs)[:, None] & left[None, :], other=0.0)
        x_block = tl.load(x_at, mask=left[:, None] & (i < inputs)[None, :], other=0.0)
        product = tl.dot(g_block, x_block, product, input_precision=PRECISION)
        if k % steps == steps - 1:
            total += product * product
            product = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    to = out + (split.to(tl.int64) * outputs + o[:, None]) * inputs + i[None, :]
    tl.store(to, total, mask=(o < outputs)[:, None] & (i < inputs)[None, :])


def _constants(dtype: torch.dtype, *, three_passes: bool) -> dict[str, Any]:
    """The tile; three TF32 passes spill in a wider one, and with more tokens at once
    (`test_aot.py`)."""
    thrice = dtype == torch.float32 and three_passes
    return {
        "BLOCK_O": _BLOCK,
        "BLOCK_I": _BLOCK // 2 if thrice else _BLOCK,
        "BLOCK_N": 16 if thrice else 32,
        "PRECISION": "tf32x3" if thrice else "tf32",
        "STAGES": 3,
    }


@triton_op("rib::outer_squares", mutates_args=(), schema="(Tensor g, Tensor x) -> Tensor")
def _outer_squares_cuda(g: Tensor, x: Tensor) -> Tensor:
    """Splits the batch until the grid fills the device; the partial sums are added in order."""
    batch, tokens, outputs = g.shape
    inputs = x.shape[2]
    constants = _constants(g.dtype, three_passes=torch.get_float32_matmul_precision() == "highest")
    tiles = (-(-outputs // constants["BLOCK_O"]), -(-inputs // constants["BLOCK_I"]))
    if not (batch and tokens and outputs and inputs):
        return g.new_zeros(outputs, inputs, dtype=torch.float32)
    splits = min(batch, max(1, _PROGRAMS // (tiles[0] * tiles[1])), _MOST_SPLITS)
    per_split = -(-batch // splits)
    partial = g.new_empty(splits, outputs, inputs, dtype=torch.float32)
    launcher(_outer_squares_kernel)[(*tiles, splits)](
        g,
        x,
        partial,
        batch,
        tokens,
        outputs,
        inputs,
        per_split,
        *g.stride(),
        *x.stride(),
        **constants,
        num_warps=_WARPS,
    )
    return partial.sum(0)


def specializations() -> list[dict[str, Any]]:
    """What the ahead-of-time gate compiles: contiguous features (linear) and positions (conv)."""
    scalars = ("batch", "tokens", "outputs", "inputs", "per_split")
    strides = ("g_batch", "g_token", "g_output", "x_batch", "x_token", "x_input")
    layouts = (
        ("linear", ("g_output", "x_input"), ()),
        ("conv", ("g_token", "x_token"), ("tokens",)),
    )
    dtypes = (
        ("fp32", torch.float32, True),
        ("fp32", torch.float32, False),
        ("bf16", torch.bfloat16, True),
        ("fp16", torch.float16, True),
    )
    specs = []
    for name, dtype, three_passes in dtypes:
        for layout, unit, more in layouts:
            wide = [stride for stride in strides if stride not in unit]
            specs.append(
                {
                    "name": f"outer_squares[{layout}] {name}{'' if three_passes else ' as TF32'}",
                    "fn": _outer_squares_kernel,
                    "signature": {
                        "g": f"*{name}",
                        "x": f"*{name}",
                        "out": "*fp32",
                        **dict.fromkeys((*scalars, *wide), "i32"),
                    },
                    "constexprs": {
                        **_constants(dtype, three_passes=three_passes),
                        **dict.fromkeys(unit, 1),
                    },
                    "divisible": ["outputs", "inputs", *wide, *more],
                    "num_warps": _WARPS,
                    "bytes_per_element": None,
                    # Hopper multiplies TF32 with tokens innermost only; a linear layer's are not.
                    "aligned": three_passes or layout == "conv",
                }
            )
    return specs
