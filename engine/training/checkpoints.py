"""Checkpoints: a training that is killed goes on from its last one, and a scheduler's end is heard.

A checkpoint is due by the clock. Its state is copied between two steps and written by a thread. At
SIGTERM, SIGUSR1 or Ctrl-C all ranks stop after the same step, write one more and leave.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import time
from dataclasses import dataclass, field
from types import TracebackType

from torch import Tensor

from engine.errors import DivergedError, PreemptedError
from engine.machine import preemption, ranks
from engine.store.checkpoints import CheckpointFiles
from engine.training.training_state import TrainingState
from engine.training.writer import Writer

log = logging.getLogger(__name__)
# Steps between two agreements of several ranks: on a GPU each makes the host wait for it.
AGREE_EVERY = {"cpu": 1, "cuda": 8}
_NOTHING, _SAVE, _STOP = 0, 1, 2


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


class Checkpoints(Writer):
    """Takes a cell's checkpoints. Every rank calls every method; the first rank writes.

    Leaving the context waits for the last file. What is not finite is not written, so those of a
    training that diverged hold its last good weights.
    """

    def __init__(self, files: CheckpointFiles, minutes: float, before: float = math.inf) -> None:
        """minutes: between two checkpoints. before: a step that must be taken again."""
        super().__init__("checkpoints")
        self._files, self._wait_s, self._before = files, 60 * minutes, before
        self._stack = contextlib.ExitStack()

    def begin(self, state: TrainingState, device: str) -> Progress:
        """Restore the state of the last whole checkpoint, if there is one.

        From now on `state` is what is saved, and signals are heard. device: its type.
        """
        self._state = state
        self._every = AGREE_EVERY[device] if ranks.world() > 1 else 1
        self._preempted = self._stack.enter_context(preemption.noticed())
        self._last = time.monotonic()
        newest = self._files.newest(self._before) if ranks.rank() == 0 else 0
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

    def take(self, progress: Progress) -> None:
        """Save the state after an optimizer step if it is time; PreemptedError after a signal."""
        request = self._request_at(progress.step)
        if request == _NOTHING:
            return
        self._last = time.monotonic()
        tensors = self._state.copy()
        if ranks.rank() == 0:
            facts = json.dumps(dataclasses.asdict(progress))
            write = functools.partial(self._write, progress.step, tensors, facts)
            written = self.submit(write)
            if request == _STOP:
                written.result()
        if request == _STOP:
            ranks.all_agree(True)  # waits for the first rank, without which a launcher ends it
            raise PreemptedError(
                f"a signal ended training after step {progress.step}; the same command goes on "
                f"from the last checkpoint in {self._files.folder}"
            )

    def _request_at(self, step: int) -> int:
        """What the ranks do after this step, the same on all of them."""
        if step % self._every:
            return _NOTHING
        is_due = time.monotonic() - self._last >= self._wait_s and not self.busy
        wish = _STOP if self._preempted() else _SAVE if is_due and ranks.rank() == 0 else _NOTHING
        return -int(ranks.least(-wish))

    def _write(self, step: int, tensors: dict[str, Tensor], facts: str) -> None:
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return  # the training is about to end
        try:
            self._files.write(step, tensors, facts)
        except OSError as error:  # training itself needs no room
            log.warning(f"training goes on without the checkpoint of step {step}: {error}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        super().__exit__(kind, error, trace)
        if isinstance(error, DivergedError) and (steps := self._files.steps()):
            log.warning(
                "the last good weights are in the checkpoint of step %d in %s",
                steps[0],
                self._files.folder,
            )
