"""Work on copies of tensors, in a thread beside training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU. From a GPU it is queued, into page-locked memory, and not awaited."""
    return tensor.detach().to("cpu", non_blocking=True, copy=True)


class Writer:
    """Does work in a thread, a piece after the other, while training goes on.

    A step waits for no file, and on a GPU for no copy: a piece of work begins when the copies are
    there that were queued before it. Leaving the context waits for all of it and raises what a
    piece raised, unless an error is on its way already.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._submitted: list[Future[object]] = []

    @property
    def busy(self) -> bool:
        """Whether work is left."""
        return bool(self._submitted) and not self._submitted[-1].done()

    def submit(self, work: Callable[[], object]) -> Future[object]:
        """Do `work` after what was submitted before."""
        event = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if event is not None:
            event.record()
        self._submitted.append(self._pool.submit(_after, event, work))
        return self._submitted[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()  # after an error too: a training that goes on counts on these files
        if error is None:
            for future in self._submitted:
                future.result()


def _after(event: torch.cuda.Event | None, work: Callable[[], object]) -> object:
    if event is not None:
        event.synchronize()
    return work()
