"""Arithmetic of NumPy's on all cores: whole products side by side, not one product in pieces.

NumPy's BLAS cuts each product over the cores and then spins until the last is done, which takes far
longer than one thread would wherever a core has other work (docs/design.md).
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
    """`work(item)` of every item, in their order; `work` should let go of Python's lock."""
    with _libraries().limit(limits=1, user_api="blas"):
        return spread(work, [(item,) for item in items], len(os.sched_getaffinity(0)))


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all that is loaded, which takes milliseconds
