"""Independent problems solved in parallel threads, as many as cores and memory allow.

Threads are enough: the work (BLAS, LAPACK, compiled loops, network simplex) releases Python's lock.
They copy no data and share compiled loops. On a GPU each thread has its stream, so the launches of
a problem fill the waits of another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

from engine.machine import bars
from engine.machine.threads import threads

T = TypeVar("T", bound=Hashable)
R = TypeVar("R")

log = logging.getLogger(__name__)

_STREAMS = 4  # at once on a GPU


def workers(problems: int, bytes_each: int, allowed: int, device: torch.device) -> int:
    """How many problems may run at once, at least 1.

    bytes_each: memory of the largest problem. allowed: bytes for all of them together.
    """
    wished = min(problems, torch.get_num_threads() if device.type == "cpu" else _STREAMS)
    fit = allowed // max(1, bytes_each)
    if fit < wished:
        log.info(
            "a problem takes up to %.3g GB, of %.3g GB that may be used: %d at once, not %d",
            *(bytes_each / 1e9, allowed / 1e9, max(1, fit), wished),
        )
    return max(1, min(wished, fit))


def side_by_side(
    work: Callable[[T], R],
    items: Sequence[T],
    at_once: int,
    device: torch.device,
    *,
    label: str,
    unit: str,
) -> dict[T, R]:
    """work(item) of each item, so many at a time; the threads divide torch's cores.

    A result does not depend on what runs beside it. After an error no new item begins, and the
    error is raised when those that run are finished.
    """
    on_gpu = device.type == "cuda"

    def set_stream() -> None:
        if on_gpu:
            torch.cuda.set_stream(torch.cuda.Stream(device))

    def finished(item: T) -> R:
        result = work(item)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return result

    if on_gpu:
        torch.cuda.synchronize(device)  # the streams do not wait for what made their inputs
    bar = bars.bar(total=len(items), desc=label, unit=unit)
    share = threads(max(1, torch.get_num_threads() // at_once))
    with bar, share, ThreadPoolExecutor(at_once, "problems", set_stream) as pool:
        futures = {item: pool.submit(finished, item) for item in items}
        try:
            for future in as_completed(futures.values()):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return {item: future.result() for item, future in futures.items()}
