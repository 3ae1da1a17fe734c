"""Snapshots: copies of a model during its training, written while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch

from engine.machine import ranks
from engine.methods.base import Trained
from engine.store.cells import Export

Write = Callable[[int, Export], object]  # step and export


def steps(count: int, total: int) -> list[int]:
    """About `count` optimizer steps from 1 to `total`, evenly spaced on a logarithmic scale.

    They ascend to `total`. There are fewer than `count` where neighbours round to the same step,
    and none where `total` is 0.
    """
    if not total:
        return []
    return np.unique(np.geomspace(total, 1, count).round().astype(int)).tolist()


class Snapshots:
    """Copies a method's export at chosen optimizer steps and hands it to `write`, in a thread.

    A step waits for no file, and on a GPU for no copy: the copy is queued behind the step, into
    page-locked memory, and the thread waits for its end. Every rank calls `take`; the first writes,
    since after a step all ranks hold whole weights (ZeRO stages 0 to 2). Leaving the context waits
    for the files and raises what a write raised.
    """

    def __init__(self, at: Collection[int], write: Write) -> None:
        self._at, self._write = frozenset(at), write
        self._pool = ThreadPoolExecutor(1, "snapshots")
        self._written: list[Future[object]] = []

    def take(self, step: int, method: Trained) -> None:
        """Copy the method's export if this step is among those chosen."""
        if step not in self._at or ranks.rank() > 0:
            return
        export = _copied(method.export())
        event = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if event is not None:
            event.record()
        self._written.append(self._pool.submit(self._finish, event, step, export))

    def _finish(self, event: torch.cuda.Event | None, step: int, export: Export) -> object:
        if event is not None:
            event.synchronize()
        return self._write(step, export)

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for future in self._written:
                future.result()


def _copied(export: Export) -> Export:
    """The export in memory of its own, on the CPU."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu", non_blocking=True, copy=True)

    state = {name: copy(tensor) for name, tensor in export.state.items()}
    prompt = None if export.prompt is None else copy(export.prompt)
    return Export(state, prompt, export.shares_backbone)
