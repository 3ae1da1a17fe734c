"""NumPy arithmetic on all cores, a matrix product a core.

NumPy's BLAS splits each product over the cores and spins until the last part is done: far slower
than a single thread wherever a core has other work (docs/design.md).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from kernels.threads import spread

A = TypeVar("A")
B = TypeVar("B")


def each(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`work(item)` of every item, in their order; `work` should release the GIL."""
    with _libraries().limit(limits=1, user_api="blas"):
        return spread(work, [(item,) for item in items], len(os.sched_getaffinity(0)))


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # searches all loaded libraries, which takes milliseconds
