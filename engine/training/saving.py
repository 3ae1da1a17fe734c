"""Save snapshots to evaluate, and checkpoints to resume from, during training.

Both are copied between two steps and written by a thread. Checkpoints are written at intervals of
time. At SIGTERM, SIGUSR1 or Ctrl-C, all ranks stop after the same step, write one more and exit.
Trained weights that are not finite are not written, with a warning, so a training that diverged
keeps the checkpoint of its last good weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import DivergedError, PreemptedError
from engine.machine import preemption, ranks
from engine.methods.base import Trained
from engine.store.cells import Export
from engine.store.checkpoints import CheckpointFiles
from engine.training import optim

log = logging.getLogger(__name__)
# Steps between two synchronizations of several ranks, which make the host wait for the GPU.
AGREE_EVERY = {"cpu": 1, "cuda": 8}
_SAVE, _STOP = 1, 2
MODULE, OPTIMIZER, RANDOM, SUMS = "module/", "optimizer/", "random/", "sums/"  # in names of tensors


def snapshot_steps(count: int, total: int) -> list[int]:
    """About `count` optimizer steps from 1 to `total`, evenly spaced on a logarithmic scale.

    They ascend to `total`. There are fewer than `count` if neighbours round to the same step, and
    none if `total` is 0.
    """
    if not total:
        return []
    return np.unique(np.geomspace(total, 1, count).round().astype(int)).tolist()


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training, without its tensors.

    step: finished optimizer steps. history: one entry per finished epoch. losses: number of summed
    losses. ranks: number of ranks. epoch_losses: number of those of the epoch that were read.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    losses: int = 0
    ranks: int = 1
    epoch_losses: int = 0


class TrainingState:
    """All that an optimizer step changes, as tensors by name: the state of a method, its optimizer,
    torch's random generators and running sums.

    A method's state consists of its parameters and persistent buffers, trained or not, but not of
    plain attributes or other buffers, which `prepare` makes again. Create it before the first step;
    parameters added later are not included.
    """

    def __init__(self, engine: Any, method: Trained, sums: Mapping[str, Tensor]) -> None:
        """sums: scalars of this rank on the engine's device; resuming on another number of ranks
        divides their total among these."""
        persistent = method.state_dict(keep_vars=True).keys()
        buffers = {name: buffer for name, buffer in method.named_buffers() if name in persistent}
        self._module = dict(method.named_parameters()) | buffers
        self._optimizer = optim.own_optimizer(engine.optimizer)
        names = {tensor: name for name, tensor in self._module.items()}
        stepped, self._own = (
            {names[p]: p for group in optimizer.param_groups for p in group["params"]}
            for optimizer in (engine.optimizer, self._optimizer)
        )
        self.trained = [MODULE + name for name in stepped]  # in the names of `copy`
        self.device = engine.device
        self._sums = sums
        self._keepers = dict.fromkeys(stepped, 0)  # a rank with the optimizer's state of each
        if self._optimizer is not engine.optimizer:
            own = [ranks.rank() if name in self._own else 0 for name in stepped]
            keepers_T = torch.tensor(own, device=self.device)
            dist.all_reduce(keepers_T)
            self._keepers = dict(zip(stepped, keepers_T.tolist(), strict=True))

    @torch.no_grad()
    def copy(self) -> dict[str, Tensor]:
        """The state on the CPU, by name, on the first rank; {} on others, which must also call
        it."""
        state = {}
        for name, tensor in self._tensors():  # on all ranks, because it gathers
            if ranks.rank() == 0:
                state[name] = to_host(tensor)
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a state of `copy`: bit for bit on the same number of ranks."""
        for name, tensor in self._module.items():
            tensor.copy_(state[MODULE + name])
        self._restore_optimizer(state)
        for name, generator in self._generators.items():
            rows = state.get(RANDOM + name)
            if rows is not None:  # otherwise made on another kind of device
                # A copy, because a generator reads a view from the start of its memory.
                generator.set_state(rows[ranks.rank() % len(rows)].clone())
        for name, value in self._sums.items():
            rows = state[SUMS + name]
            same = len(rows) == ranks.world()
            value.copy_(rows[ranks.rank()] if same else rows.sum() / ranks.world())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._module.items():
            yield MODULE + name, tensor
        for name, keeper in self._keepers.items():
            if ranks.rank() in (0, keeper):
                yield from self._state_on_first(name, keeper)
        for name, generator in self._generators.items():
            yield RANDOM + name, _of_ranks(generator.get_state().to(self.device))
        for name, value in self._sums.items():
            yield SUMS + name, _of_ranks(value)

    def _state_on_first(self, name: str, keeper: int) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's state of a parameter, which its keeper sends to the first rank."""
        states = self._optimizer.state
        # On several ranks all states have the same keys, and the first rank has at least one.
        others = next(iter(states.values()), {}) if keeper else {}  # SGD may have no momentum
        for key, value in states.get(self._module[name], others).items():
            if value is None:  # SGD's momentum where it is 0
                continue
            if keeper and ranks.rank() == keeper:
                dist.send(value.to(self.device).contiguous(), 0)
            elif keeper:
                shape = self._module[name].shape if value.dim() else value.shape
                value = torch.empty(shape, dtype=value.dtype, device=self.device)
                dist.recv(value, keeper)
            yield f"{OPTIMIZER}{key}/{name}", value

    @property
    def _generators(self) -> dict[str, torch.Generator]:
        of_gpu = self.device.type == "cuda"
        more = {"cuda": torch.cuda.default_generators[self.device.index]} if of_gpu else {}
        return {"cpu": torch.default_generator, **more}

    def _restore_optimizer(self, state: Mapping[str, Tensor]) -> None:
        numbers = {name: number for number, name in enumerate(self._own)}
        of_parameters: dict[int, dict[str, Tensor]] = {}
        for label, tensor in state.items():
            if not label.startswith(OPTIMIZER):
                continue
            key, _, name = label.removeprefix(OPTIMIZER).partition("/")
            if name not in self._own:
                continue
            # A copy, or it would map the whole file; in the optimizer's memory layout.
            like = self._own[name].detach() if tensor.dim() else tensor
            value = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            of_parameters.setdefault(numbers[name], {})[key] = value
        content = self._optimizer.state_dict() | {"state": of_parameters}
        self._optimizer.load_state_dict(content)


class Saving:
    """A context manager that saves a training. Every rank calls every method; the first rank
    writes.

    Leaving the context waits for all files. It raises errors of writing snapshots, on all ranks,
    and PreemptedError after a signal, unless another error is being raised.
    """

    def __init__(
        self,
        snapshots: Collection[int] = (),
        write: Callable[[int, Export], object] = lambda step, export: None,
        files: CheckpointFiles | None = None,
        minutes: float = 0.0,
    ) -> None:
        """write: called with the model after each step of `snapshots`. files: of checkpoints; None:
        no checkpoints and no signal handling. minutes: between two checkpoints."""
        self._snapshots, self._write = frozenset(snapshots), write
        self._files, self._wait_s = files, 60 * minutes
        self._thread = ThreadPoolExecutor(1, "saving")
        self._submitted: list[Future[object]] = []
        self._signals = contextlib.ExitStack()
        # Of the last step, while signals are noticed.
        self._progress: TrainingProgress | None = None

    def begin(self, state: TrainingState) -> TrainingProgress:
        """Restore the last complete checkpoint, if any. Later checkpoints contain `state`."""
        if self._files is None:
            return TrainingProgress()
        self._state = state
        self._every = AGREE_EVERY[state.device.type] if ranks.world() > 1 else 1
        self._preempted = self._signals.enter_context(preemption.noticed())
        self._last = time.monotonic()
        before = min(self._snapshots, default=np.inf)
        with ranks.together():
            newest = self._files.newest(before) if ranks.rank() == 0 else 0
        step = int(ranks.most(newest))
        self._progress = TrainingProgress()
        if not step:
            return self._progress
        with ranks.together():
            tensors, facts = self._files.read(step)
        state.restore(tensors)
        self._progress = progress = TrainingProgress(**facts)
        if ranks.rank() == 0:
            log.info("resuming from the checkpoint of step %d in %s", step, self._files.folder)
            if progress.ranks != ranks.world():
                log.warning(
                    f"resuming a checkpoint of {progress.ranks} ranks on {ranks.world()}: rounding "
                    "differs, so weights are close but not equal bit for bit"
                )
        return progress

    def take(self, progress: TrainingProgress, method: Trained) -> None:
        """Save what is due after an optimizer step. Raises PreemptedError after a signal."""
        if progress.step in self._snapshots:
            with ranks.together():
                if ranks.rank() == 0:
                    self._take_snapshot(progress.step, method)
        self._progress = progress
        if self._files is None or progress.step % self._every:
            return
        is_busy = bool(self._submitted) and not self._submitted[-1].done()
        is_due = time.monotonic() - self._last >= self._wait_s and not is_busy
        wish = _STOP if self._preempted() else _SAVE if is_due and ranks.rank() == 0 else 0
        wish = int(ranks.most(wish))  # all ranks do the same
        if wish == _STOP:
            self._stop(self._files, progress)
        if wish:
            self._take_checkpoint(self._files, progress)

    def _take_snapshot(self, step: int, method: Trained) -> None:
        wait(self._submitted[:-1])  # at most two snapshots are in memory and not yet written
        export = method.export()
        state = {name: to_host(tensor) for name, tensor in export.state.items()}
        prompt = None if export.prompt is None else to_host(export.prompt)
        copy = dataclasses.replace(export, state=state, prompt=prompt)
        self.submit(lambda: self._write(step, copy))

    def submit(self, work: Callable[[], object]) -> Future[object]:
        """Run `work` in the thread, after earlier work."""
        self._submitted.append(self._thread.submit(work))
        return self._submitted[-1]

    def _stop(self, files: CheckpointFiles, progress: TrainingProgress) -> NoReturn:
        self._take_checkpoint(files, progress)
        self._thread.shutdown()
        ranks.all_agree(True)  # waits for the first rank, so that the launcher does not end it
        raise PreemptedError(
            f"a signal ended training after step {progress.step}; the same command resumes "
            f"from the last checkpoint in {files.folder}"
        )

    def _take_checkpoint(self, files: CheckpointFiles, progress: TrainingProgress) -> None:
        self._last = time.monotonic()
        tensors = self._state.copy()
        facts = json.dumps(dataclasses.asdict(progress))

        def write() -> None:
            if not all(tensors[name].isfinite().all() for name in self._state.trained):
                log.warning(
                    f"no checkpoint of step {progress.step}: a trained weight is not finite"
                )
                return
            try:
                files.write(progress.step, tensors, facts)
            except OSError as error:  # training itself needs no disk space
                log.warning(
                    f"training continues without the checkpoint of step {progress.step}: {error}"
                )

        if ranks.rank() == 0:
            self.submit(write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                with ranks.together():
                    for future in self._submitted:
                        future.result()
                if self._is_preempted():  # a signal after the last step stops as in `take`
                    assert self._files is not None and self._progress is not None
                    self._stop(self._files, self._progress)
            elif isinstance(error, DivergedError) and self._is_preempted():
                raise PreemptedError("a signal ended training, which had diverged") from error
        finally:
            self._signals.close()
            self._thread.shutdown()  # also after an error, because resuming needs these files
        if isinstance(error, DivergedError) and self._files and (steps := self._files.steps()):
            log.warning(
                "the last good weights are in the checkpoint of step %d in %s",
                steps[0],
                self._files.folder,
            )

    def _is_preempted(self) -> bool:
        """Whether a signal came to any rank. None is noticed before `begin` or without files."""
        if self._files is None or self._progress is None:
            return False
        return not ranks.all_agree(not self._preempted())


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU."""
    return tensor.detach().to("cpu", copy=True)


def _of_ranks(tensor: Tensor) -> Tensor:
    """The ranks' tensors as rows, in the order of the ranks."""
    if ranks.world() == 1:
        return tensor[None]
    rows = [torch.empty_like(tensor) for _ in range(ranks.world())]
    dist.all_gather(rows, tensor)
    return torch.stack(rows)
