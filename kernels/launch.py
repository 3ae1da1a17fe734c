"""The one door to Triton, so that every module here imports on machines without it.

Kernels are decorated with `jit` and started through `launcher`. Where Triton is missing `jit`
leaves the function as it is: nothing calls it, since only CUDA tensors are sent to kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.library import wrap_triton

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = ["jit", "launcher", "tl", "triton"]


def jit(fn: Callable[..., Any]) -> Any:
    """`triton.jit`, or the bare function where Triton is not installed."""
    return fn if triton is None else triton.jit(fn)


def launcher(kernel: Any) -> Any:
    """The object to index with a grid: traceable by torch.compile, or interpreted.

    Under TRITON_INTERPRET=1 kernels are not JITFunctions and torch refuses to wrap them; they are
    then called as they are. Raises RuntimeError where Triton is missing.
    """
    if triton is None:
        raise RuntimeError("CUDA tensors need Triton's kernels: pip install triton")
    return wrap_triton(kernel) if isinstance(kernel, triton.runtime.JITFunction) else kernel
