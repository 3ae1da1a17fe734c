"""The one door to Triton, so that every module here imports on machines without it.

Kernels are decorated with `jit` and started through `launcher`. Where Triton is missing `jit`
leaves the function as it is: nothing calls it, since only CUDA tensors are sent to kernels.

Loops of kernels are `tl.range`, which runs their loads ahead. Its type says that it cannot be
iterated, so files with kernels turn pyright's rule on that off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = [
    "FUSED",
    "Launcher",
    "jit",
    "launcher",
    "padded",
    "row_pitch",
    "rows_apart",
    "tl",
    "triton",
]

# Multiplications and additions become one instruction, which Triton 3.10 leaves off by default.
FUSED = {"enable_fp_fusion": True}
_ROW = 64  # elements: rows of a multiple begin 64 bytes apart or more, whatever their dtype


def jit(
    fn: Callable[..., Any] | None = None, *, do_not_specialize: Sequence[str] = ()
) -> Callable[..., Any] | Any:
    """`triton.jit`, or the bare function where Triton is not installed.

    do_not_specialize: integers that change from call to call. Triton compiles a kernel anew for an
    integer that is 1 and for a multiple of 16, unless it is listed. Row lengths that pad rows to
    multiples of 64 (`padded`) are not: wide accesses need to know that they are.
    """
    if fn is None:
        return lambda fn: jit(fn, do_not_specialize=do_not_specialize)
    return fn if triton is None else triton.jit(do_not_specialize=do_not_specialize)(fn)


@dataclass(frozen=True)
class Launcher:
    """`Launcher(kernel)[grid](*arguments)`, on the device of the first argument, a tensor.

    Triton launches on the current device, whose memory a tensor on cuda:1 need not be in.
    """

    kernel: Any
    options: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            with _current(arguments[0].device):
                self.kernel[grid](*arguments, **self.options, **options)

        return launch


def launcher(kernel: Any) -> Launcher:
    """The object to index with a grid: the kernel, or what torch.compile traces in its place.

    Raises RuntimeError where Triton is missing.
    """
    if triton is None:
        raise RuntimeError("CUDA tensors need Triton's kernels: pip install triton")
    if torch.compiler.is_compiling():  # then Inductor compiles it, with an option of its own
        return Launcher(wrap_triton(kernel))
    return Launcher(kernel, FUSED)


def padded(shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor of this shape on the device of `like`, whose rows on a GPU lie a multiple of
    64 elements apart: a row that begins anywhere is read two or four bytes at a time."""
    *rows, columns = shape
    pitch = row_pitch(columns, like.device)
    return like.new_empty((*rows, pitch), dtype=dtype)[..., :columns]


def row_pitch(columns: int, device: torch.device) -> int:
    """How many elements the rows of a `padded` tensor lie apart."""
    return -(-columns // _ROW) * _ROW if device.type == "cuda" else columns


def rows_apart(matrix: Tensor) -> Tensor:
    """The matrix, whose rows may lie apart, or a copy where numbers of a row do."""
    near = matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]
    return matrix if near else matrix.contiguous()


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
