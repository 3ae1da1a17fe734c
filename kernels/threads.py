"""Loops compiled by numba: they release the GIL, are cached on disk and run in a thread pool."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

HAS_NUMBA = importlib.util.find_spec("numba") is not None


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Returns numba.njit with these options, caching the machine code on disk for later processes.

    numba recompiles only if the loop's own file changes, so define a loop in one file with
    everything that it calls. If no cache folder is writable, each process compiles again.
    """
    import numba

    def compile(loop: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(loop)
        except RuntimeError:  # neither the loop's folder nor the user's cache is writable
            return numba.njit(nogil=True, **options)(loop)

    return compile


def spread(loop: Callable[..., Any], pieces: Sequence[Sequence[Any]], threads: int) -> list[Any]:
    """Returns the results of `loop(*piece)` for each piece, in order.

    The calling thread works too. Each thread takes the next piece, so none waits for a late
    starter.
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


# Threads do not survive a fork: a child would wait forever for its parent's threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
