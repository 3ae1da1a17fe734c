"""Independent problems solved side by side, as many at once as cores and memory allow.

In threads: what takes the time of those that come here (BLAS, LAPACK, compiled loops, network
simplex) leaves Python's lock alone, nothing is copied, and loops are compiled once for all. On a
GPU each thread has a stream of its own, so that one problem's launches fill the other's waits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch
from tqdm import tqdm

from engine.machine import ranks

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

_STREAMS = 4  # at once on a GPU


def workers(problems: int, bytes_each: int, allowed: int, device: torch.device) -> int:
    """How many problems may run at once, one at least: `bytes_each` of the largest of them,
    `allowed` for all together."""
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
    """Pairs (item, work(item)), as they are finished; meanwhile torch's threads are shared out.

    An item's result does not depend on what runs beside it. After an error nothing new is begun;
    what runs is finished and yielded, and then the (first) error is raised.
    """
    quiet = ranks.rank() > 0 or os.environ.get("RIB_PROGRESS") == "off"
    bar = tqdm(total=len(items), desc=label, unit=unit, leave=False, disable=quiet)
    with bar, threads(max(1, torch.get_num_threads() // at_once)):
        found = _in_turn(work, items) if at_once == 1 else _pooled(work, items, at_once, device)
        for pair in found:
            bar.update()
            yield pair


def _in_turn(work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
    for item in items:
        yield item, work(item)


def _pooled(
    work: Callable[[T], R], items: Sequence[T], at_once: int, device: torch.device
) -> Iterator[tuple[T, R]]:
    def begin() -> None:
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
    pool = ThreadPoolExecutor(at_once, "problems", begin)
    try:
        futures: dict[Future[R], T] = {pool.submit(finished, item): item for item in items}
        for future in as_completed(futures):
            if future.cancelled():
                continue
            if (failed := future.exception()) is None:
                yield futures[future], future.result()
            elif error is None:
                error = failed
                for other in futures:
                    other.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    if error is not None:
        raise error


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many; threads that begin meanwhile take the number over."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
