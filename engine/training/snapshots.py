"""Snapshots: copies of a model during its training, written while training goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

import numpy as np

from engine.machine import ranks
from engine.methods.base import Trained
from engine.store.cells import Export
from engine.training.writer import Writer, to_host

Write = Callable[[int, Export], object]  # step and export


def steps(count: int, total: int) -> list[int]:
    """About `count` optimizer steps from 1 to `total`, evenly spaced on a logarithmic scale.

    They ascend to `total`. There are fewer than `count` where neighbours round to the same step,
    and none where `total` is 0.
    """
    if not total:
        return []
    return np.unique(np.geomspace(total, 1, count).round().astype(int)).tolist()


class Snapshots(Writer):
    """Copies a method's export at chosen optimizer steps and hands it to `write`, in a thread.

    Every rank calls `take`; the first writes, since after a step all ranks hold whole weights.
    """

    def __init__(self, at: Collection[int], write: Write) -> None:
        super().__init__("snapshots")
        self._at, self._write = frozenset(at), write

    def take(self, step: int, method: Trained) -> None:
        """Copy the method's export if this step is among those chosen."""
        if step in self._at and ranks.rank() == 0:
            self.submit(functools.partial(self._write, step, _copied(method.export())))


def _copied(export: Export) -> Export:
    """The export in memory of its own, on the CPU."""
    state = {name: to_host(tensor) for name, tensor in export.state.items()}
    prompt = None if export.prompt is None else to_host(export.prompt)
    return Export(state, prompt, export.shares_backbone)
