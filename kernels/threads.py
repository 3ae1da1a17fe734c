"""numba's loops, which leave Python's lock alone: stored on disk, spread over threads that stay."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

HAS_NUMBA = importlib.util.find_spec("numba") is not None


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba.njit with these options; the machine code is stored for the next process.

    It is stale when the loop's file is newer, so a loop stands in one file with all that it calls.
    Where no folder can be written to, each process compiles anew.
    """
    import numba

    def compile(loop: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(loop)
        except RuntimeError:  # neither the loop's folder nor the user's cache can be written to
            return numba.njit(nogil=True, **options)(loop)

    return compile


def spread(loop: Callable[..., Any], pieces: Sequence[Sequence[Any]], threads: int) -> list[Any]:
    """The results of `loop(*piece)` for each piece, in order.

    The caller's thread works too; each takes the next piece that is left, so that none waits for
    one that started late.
    """
    results: list[Any] = [None] * len(pieces)
    left = iter(range(len(pieces)))

    def run() -> None:
        for number in left:
            results[number] = loop(*pieces[number])

    futures = [_pool().submit(run) for _ in range(min(threads, len(pieces)) - 1)]
    run()
    for future in futures:
        future.result()
    return results


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernels")


# Threads do not survive a fork: a child would wait for its parent's.
os.register_at_fork(after_in_child=_pool.cache_clear)
