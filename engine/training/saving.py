"""What a training writes while it goes on: snapshots to evaluate, and checkpoints to go on from.

Both are copied between two steps and written by a thread. A checkpoint is due by the clock. At
SIGTERM, SIGUSR1 or Ctrl-C all ranks stop after the same step, write one more and leave. What is not
finite is not written, so a training that diverged leaves the checkpoint of its last good weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import torch

from engine.errors import DivergedError, PreemptedError
from engine.machine import preemption, ranks
from engine.methods.base import Trained
from engine.store.cells import Export
from engine.store.checkpoints import CheckpointFiles
from engine.training.training_state import TrainingState, to_host

log = logging.getLogger(__name__)
# Steps between two agreements of several ranks: on a GPU each makes the host wait for it.
AGREE_EVERY = {"cpu": 1, "cuda": 8}
_NOTHING, _SAVE, _STOP = 0, 1, 2


def snapshot_steps(count: int, total: int) -> list[int]:
    """About `count` optimizer steps from 1 to `total`, evenly spaced on a logarithmic scale.

    They ascend to `total`. There are fewer than `count` where neighbours round to the same step,
    and none where `total` is 0.
    """
    if not total:
        return []
    return np.unique(np.geomspace(total, 1, count).round().astype(int)).tolist()


@dataclass(frozen=True)
class Progress:
    """How far a training is, beside its tensors.

    step: optimizer steps done. history: an entry a finished epoch. losses: how many are in the sum
    of losses. ranks: on how many it was made.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    losses: int = 0
    ranks: int = 1


class Saving:
    """Saves a training; a context manager. Every rank calls every method, the first rank writes.

    Leaving the context waits for all files and raises what writing a snapshot raised, unless an
    error is on its way already.
    """

    def __init__(
        self,
        snapshots: Collection[int] = (),
        write: Callable[[int, Export], object] = lambda step, export: None,
        files: CheckpointFiles | None = None,
        minutes: float = 0.0,
    ) -> None:
        """write: is given the model after each step of `snapshots`. files: where checkpoints lie;
        without them there are none, and signals are left alone. minutes: from one to the next."""
        self._snapshots, self._write = frozenset(snapshots), write
        self._files, self._wait_s = files, 60 * minutes
        self._thread = ThreadPoolExecutor(1, "saving")
        self._submitted: list[Future[object]] = []
        self._signals = contextlib.ExitStack()

    def begin(self, state: TrainingState) -> Progress:
        """Restore the last whole checkpoint, if there is one; snapshots that are asked for come
        after it. From now on `state` is what checkpoints hold."""
        if self._files is None:
            return Progress()
        self._state = state
        self._every = AGREE_EVERY[state.device.type] if ranks.world() > 1 else 1
        self._preempted = self._signals.enter_context(preemption.noticed())
        self._last = time.monotonic()
        before = min(self._snapshots, default=np.inf)
        newest = self._files.newest(before) if ranks.rank() == 0 else 0
        step = -int(ranks.least(-newest))
        if not step:
            return Progress()
        tensors, facts = self._files.read(step)
        state.restore(tensors)
        progress = Progress(**facts)
        if ranks.rank() == 0:
            log.info("going on from the checkpoint of step %d in %s", step, self._files.folder)
            if progress.ranks != ranks.world():
                log.warning(
                    f"the checkpoint was made on {progress.ranks} ranks and goes on on "
                    f"{ranks.world()}: sums round otherwise, so weights are close but not bit-equal"
                )
        return progress

    def take(self, progress: Progress, method: Trained) -> None:
        """After an optimizer step: save what is due. Raises PreemptedError after a signal."""
        if progress.step in self._snapshots and ranks.rank() == 0:
            export = method.export()
            state = {name: to_host(tensor) for name, tensor in export.state.items()}
            prompt = None if export.prompt is None else to_host(export.prompt)
            copy = dataclasses.replace(export, state=state, prompt=prompt)
            self.submit(functools.partial(self._write, progress.step, copy))
        if self._files is not None:
            self._take_checkpoint(self._files, progress)

    def submit(self, work: Callable[[], object]) -> Future[object]:
        """Do `work` in the thread, once the copies are there that were queued before it."""
        copied = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if copied is not None:
            copied.record()

        def do() -> object:
            if copied is not None:
                copied.synchronize()
            return work()

        self._submitted.append(self._thread.submit(do))
        return self._submitted[-1]

    def _take_checkpoint(self, files: CheckpointFiles, progress: Progress) -> None:
        request = self._request_at(progress.step)
        if request == _NOTHING:
            return
        self._last = time.monotonic()
        tensors = self._state.copy()
        if ranks.rank() == 0:
            facts = json.dumps(dataclasses.asdict(progress))

            def write() -> None:
                if not all(tensor.isfinite().all() for tensor in tensors.values()):
                    return  # the training is about to end
                try:
                    files.write(progress.step, tensors, facts)
                except OSError as error:  # training itself needs no room
                    log.warning(
                        f"training goes on without the checkpoint of step {progress.step}: {error}"
                    )

            written = self.submit(write)
            if request == _STOP:
                written.result()
        if request == _STOP:
            ranks.all_agree(True)  # waits for the first rank, without which a launcher ends it
            raise PreemptedError(
                f"a signal ended training after step {progress.step}; the same command goes on "
                f"from the last checkpoint in {files.folder}"
            )

    def _request_at(self, step: int) -> int:
        """What the ranks do after this step, the same on all of them."""
        if step % self._every:
            return _NOTHING
        is_busy = bool(self._submitted) and not self._submitted[-1].done()
        is_due = time.monotonic() - self._last >= self._wait_s and not is_busy
        wish = _STOP if self._preempted() else _SAVE if is_due and ranks.rank() == 0 else _NOTHING
        return -int(ranks.least(-wish))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._signals.close()
        self._thread.shutdown()  # after an error too: a training that goes on needs these files
        if error is None:
            for future in self._submitted:
                future.result()
        if isinstance(error, DivergedError) and self._files and (steps := self._files.steps()):
            log.warning(
                "the last good weights are in the checkpoint of step %d in %s",
                steps[0],
                self._files.folder,
            )
