"""The only module that imports Triton, so that all others can be imported without it.

Decorate kernels with `jit` and start them through `start`. Without Triton, `jit` returns the
function unchanged; nothing calls it, since only CUDA tensors are sent to kernels.

Kernels loop over `tl.range`, which prefetches their loads. Its type says that it is not iterable,
so files with kernels turn off pyright's rule on that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

# Fuses multiplications and additions into FMAs, which Triton 3.10 does not do by default.
FUSED = {"enable_fp_fusion": True}
_ROW = 64  # elements: rows of a multiple start at least 64-byte aligned in any dtype


def jit(
    fn: Callable[..., Any] | None = None, *, do_not_specialize: Sequence[str] = ()
) -> Callable[..., Any] | Any:
    """Returns `triton.jit(fn)`, or `fn` itself if Triton is not installed.

    do_not_specialize: names of integer arguments that change from call to call. Otherwise Triton
    compiles a new variant when such an integer is 1 or a multiple of 16. Do not list the row
    lengths of `padded` tensors: wide accesses depend on knowing that they are multiples of 64.
    """
    if fn is None:
        return lambda fn: jit(fn, do_not_specialize=do_not_specialize)
    return fn if triton is None else triton.jit(do_not_specialize=do_not_specialize)(fn)


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Starts a kernel on the device of the first argument, a tensor: Triton launches on the current
    device.

    Raises RuntimeError if Triton is not installed.
    """
    if triton is None:
        raise RuntimeError("CUDA tensors need Triton's kernels: pip install triton")
    if torch.compiler.is_compiling():  # Inductor compiles the kernel with its own options
        kernel = wrap_triton(kernel)
    else:
        options |= FUSED
    device = arguments[0].device
    on_gpu = device.type == "cuda"
    with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
        kernel[grid](*arguments, **options)


def padded(shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns an empty tensor of this shape and dtype on the device of `like`.

    On a GPU, rows are padded to a multiple of 64 elements: an unaligned row would be read two or
    four bytes at a time.
    """
    *rows, columns = shape
    pitch = row_pitch(columns, like.device)
    return like.new_empty((*rows, pitch), dtype=dtype)[..., :columns]


def row_pitch(columns: int, device: torch.device) -> int:
    """Distance between the rows of a `padded` tensor, in elements."""
    return -(-columns // _ROW) * _ROW if device.type == "cuda" else columns


def rows_apart(matrix: Tensor) -> Tensor:
    """Returns the matrix, or a contiguous copy if the numbers of a row are not adjacent.

    Rows themselves may be padded.
    """
    near = matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]
    return matrix if near else matrix.contiguous()
