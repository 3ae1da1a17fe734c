"""An ordered map over a pool of processes that stays a little ahead of its consumer.

`ProcessPoolExecutor.map` submits everything at once, so a dataset of millions of images would fill
the memory, and its workers hang if the parent is killed. This map avoids both.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

_AHEAD = 8  # items per process


def ordered_map(
    function: Callable[[In], Out], items: Iterable[In], workers: int = 1
) -> Generator[Out, None, None]:
    """Yields `map(function, items)`, computed by `workers` processes (by this process if 1).

    The processes are spawned, so `function`, items and results must be picklable. Exceptions of
    `function` are raised here. Raises RuntimeError if a worker process dies.
    """
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=follow_parent) as pool:
        pending: deque[Future[Out]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {workers} worker processes died: too little memory (use fewer workers), "
                'or the script that starts them lacks `if __name__ == "__main__":`'
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def follow_parent() -> None:
    """Ignores Ctrl-C in a spawned process, which the parent handles, and exits when the parent
    exits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
