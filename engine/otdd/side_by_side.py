"""Independent problems solved in parallel threads, as many as cores and memory allow.

Threads are enough: the work (BLAS, LAPACK, compiled loops, network simplex) releases Python's lock.
They copy no data and share compiled loops. On a GPU each thread has its stream, so the launches of
a problem fill the waits of another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch
from tqdm import tqdm

from engine.machine import ranks
from engine.machine.threads import threads

T = TypeVar("T")
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
) -> Iterator[tuple[T, R]]:
    """Yields (item, work(item)) in the order of completion; the threads divide torch's cores.

    A result does not depend on what runs beside it. After an error no new item begins; items that
    are running are finished and yielded, and then the first error is raised.
    """
    quiet = ranks.rank() > 0 or os.environ.get("RIB_PROGRESS") == "off"
    bar = tqdm(total=len(items), desc=label, unit=unit, leave=False, disable=quiet)
    with bar, threads(max(1, torch.get_num_threads() // at_once)):
        in_turn = ((item, work(item)) for item in items)
        for pair in in_turn if at_once == 1 else _pooled(work, items, at_once, device):
            bar.update()
            yield pair


def _pooled(
    work: Callable[[T], R], items: Sequence[T], at_once: int, device: torch.device
) -> Iterator[tuple[T, R]]:
    def set_stream() -> None:
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(device))

    def finished(item: T) -> R:
        result = work(item)
        if device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return result

    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the streams do not wait for what made their inputs
    error: BaseException | None = None
    pool = ThreadPoolExecutor(at_once, "problems", set_stream)
    try:
        futures: dict[Future[R], T] = {pool.submit(finished, item): item for item in items}
        for future in as_completed(futures):
            if future.cancelled():
                continue
            if future.exception() is None:
                yield futures[future], future.result()
            elif error is None:
                error = future.exception()
                for pending in futures:
                    pending.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    if error is not None:
        raise error
