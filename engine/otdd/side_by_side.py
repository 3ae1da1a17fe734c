"""Independent problems solved in parallel threads, as many as cores and memory allow.

Threads are enough: the work (BLAS, LAPACK, compiled loops, network simplex) releases the GIL. They
copy no data and share compiled loops. On a GPU each thread has its own stream, so one problem's
launches fill the waits of another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

from engine.machine.devices import cpu_threads
from engine.machine.terminal import progress_bar

T = TypeVar("T", bound=Hashable)
R = TypeVar("R")

_STREAMS = 4  # problems at once on a GPU


def workers(problems: int, bytes_each: int, allowed: int, device: torch.device) -> int:
    """Returns how many problems may run at once, at least 1.

    bytes_each: memory of the largest problem. allowed: bytes for all of them together.
    """
    most = torch.get_num_threads() if device.type == "cpu" else _STREAMS
    return max(1, min(problems, most, allowed // max(1, bytes_each)))


def side_by_side(
    work: Callable[[T], R], items: Sequence[T], at_once: int, device: torch.device
) -> dict[T, R]:
    """Returns work(item) for each item, computed in parallel threads that share torch's cores.

    Results do not depend on the parallelism. After an error no further item starts, and the error
    is raised when the running ones have finished.
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
        torch.cuda.synchronize(device)  # new streams do not wait for the stream of their inputs
    share = cpu_threads(max(1, torch.get_num_threads() // at_once))
    with share, ThreadPoolExecutor(at_once, "problems", set_stream) as pool:
        futures = {item: pool.submit(finished, item) for item in items}
        done = as_completed(futures.values())
        try:
            for future in progress_bar(done, total=len(items), desc="distances", unit="pair"):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
        return {item: future.result() for item, future in futures.items()}
