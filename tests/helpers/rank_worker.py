"""The ranks of the tests that need two: they train cells as `launch.py` would, some interrupted.

rank_worker.py FOLDER JOBS RESULTS RANKS. JOBS is a JSON list of {"runs", "words", "how", "step",
"after"}; how: `stop` raises before that optimizer step on every rank, `term` sends SIGTERM to the
last rank alone, `evaluate` evaluates the cell, `clip` compares clipped gradients with DeepSpeed's,
`part` measures a rank's part of an optimizer with `train.zero`, `exchange` counts what a step's
exchange of gradients writes, `path` waits for a file whose name is not UTF-8, `full` lets the first
rank find no room for features and then for a snapshot; after: where checkpoints are copied from
first. Rank 0 writes a JSON list: for each job the cell's folder and the steps that it took, or the
message that ended or refused it, or the largest difference or part on any rank, or the error of
each rank. The exit code is that of every rank.

The ranks are forks of one process, itself a fork of `fork_server`: imports take most of the time.
`commands/test_launch.py` starts ranks as users do.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import clip_grad_norm_
from torch import is_tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.cells.build import SNAPSHOTS, Followed
from engine.errors import OtherRankError, PreemptedError
from engine.evaluation import passes
from engine.machine import entry, ranks
from engine.machine.terminal import quiet_libraries
from engine.methods.base import Penalty
from engine.recipe.schema import OptimizerRecipe
from engine.store import pending
from engine.store.artifacts import Store
from engine.training import loop, optim
from helpers import processes
from helpers.grids import SETS, Grid, Prepared, prepared
from helpers.interruptions import EVERY_STEP, at_step, interrupted, resumed
from loaders.files.root import Root


def result(folder: Path, device: torch.device, job: dict[str, Any]) -> list[Any]:
    if job.get("how") == "clip":
        return [ranks.most(clipping_difference())]
    if job.get("how") == "part":
        return [ranks.most(part_of_rank())]
    grid, words, how = Grid(folder, Path(job["runs"]), device), job["words"], job.get("how")
    if how == "path":
        return [ranks.first(lambda: SimpleNamespace(proof=oddly_named(folder))).proof.name]
    if how == "exchange":
        return [exchanged(prepared(grid, *words))]
    if "after" in job:
        if ranks.rank() == 0:
            before, here = (Path(runs) / "store" / "pending" for runs in (job["after"], grid.runs))
            shutil.copytree(before, here, dirs_exist_ok=True)
        ranks.all_agree(True)
    if how == "full":
        return [errors_without_room(grid, what, *words) for what in (".npy", SNAPSHOTS)]
    if how == "stop":
        interrupted(grid.builder(EVERY_STEP, *words), job["step"])
        return ["stopped"]
    with pytest.MonkeyPatch.context() as patch:
        if how == "term" and ranks.rank() == ranks.world() - 1:
            at_step(patch, job["step"], lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            cell, steps = resumed(grid, *words)
        except ValueError as error:
            return [str(error)]
    if how == "evaluate":
        builder = grid.builder(*words)
        mix = {builder.base.name: 0.5, cell.name: 0.5}
        passes.evaluate(builder, [{cell.name: 1.0}, mix], SETS, "all")
    return [str(cell.artifact.folder), steps]


def errors_without_room(grid: Grid, what: str, *words: str) -> list[str]:
    """How each rank ends if the first one has no room for artefacts or files of this name."""
    builder, errors = grid.builder("train.snapshots=3", *words), [""] * ranks.world()
    builder.followed = Followed([builder.recipe], builder.recipe.dataset.sets)
    opened, made, end = Root.open, Store.make, ""

    def refuse(name: object) -> None:
        if what in str(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending, "SLICE", 8)
        if ranks.rank() == 0:
            patch.setattr(Root, "open", lambda *of: refuse(of[1]) or opened(*of))
            patch.setattr(Store, "make", lambda *of: refuse(of[1]) or made(*of))
        try:
            builder.build()
        except (OSError, OtherRankError) as error:
            end = f"{type(error).__name__}: {error}"
    dist.all_gather_object(errors, end)
    return errors


def clipping_difference() -> float:
    """The largest difference between gradients clipped by the engine and by DeepSpeed: where they
    are scaled, and where they are not. One parameter has none."""

    def clipped(most: float, ours: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(n, 7)) for n in (1, 40, 900)]
        for parameter in parameters[:2]:
            parameter.grad = torch.randn_like(parameter)
        (optim.clip_ if ours else clip_grad_norm_)(iter(parameters), most)
        return [p.grad for p in parameters if p.grad is not None]

    return max(
        (a - b).abs().max().item()
        for most in (0.3, 1e4)
        for a, b in zip(clipped(most, True), clipped(most, False), strict=True)
    )


def oddly_named(folder: Path) -> Path:
    """A file whose name is no text of UTF-8."""
    (path := folder / os.fsdecode(b"\xff")).touch()
    return path


class Written(TorchDispatchMode):
    """The bytes that operations write, by operation; views write none."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if is_tensor(t)}
        made = function(*args, **(kwargs or {}))
        writes = function._schema.is_mutable or function.namespace == "c10d"
        for tensor in filter(is_tensor, tree_leaves(args[0] if writes else made)):
            if writes or tensor.untyped_storage().data_ptr() not in given:
                self.of[function.overloadpacket._qualified_op_name] += tensor.nbytes
        return made


def exchanged(case: Prepared) -> dict[str, float]:
    """What DeepSpeed writes after a backward pass, by operation, in parts of the gradients'
    bytes."""
    with (
        loop.initialized(case.method, case.builder) as engine,
        pytest.MonkeyPatch.context() as patch,
    ):
        exchange = engine.allreduce_gradients

        def watched(*words: object, **named: object) -> None:
            with written:
                exchange(*words, **named)

        written = Written()
        patch.setattr(engine, "allreduce_gradients", watched)
        engine.train()
        engine.backward(engine(case.batch).mean())
        gradients = sum(p.nbytes for p in case.method.parameters() if p.requires_grad)
    return {name: count / gradients for name, count in written.of.items()}


def part_of_rank() -> float:
    """This rank's part of all moments, anchors and Fisher of AdamW with a penalty, by ZeRO."""
    named = {str(n): nn.Parameter(torch.ones(100 + n)) for n in range(20)}
    penalty = Penalty(0.5, named, named)
    optimizer = optim.build(named, OptimizerRecipe(name="adamw"), penalty, zero=1)
    whole = weakref.ref(penalty)
    del penalty
    assert whole() is None, "a rank keeps the whole penalty"
    for theta in named.values():
        theta.grad = torch.ones_like(theta)
    optimizer.step()
    part = optim.own_optimizer(optimizer)
    assert isinstance(part, optim.Penalised) and part._fishers is not None
    tensors = [*part._anchors.values(), *part._fishers.values()]
    for state in part.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
    return sum(t.numel() for t in tensors) / (4 * sum(t.numel() for t in named.values()))


def run(
    grid: Grid, folder: Path, jobs: list[dict[str, Any]], ranks: int, forked: dict[str, str]
) -> tuple[subprocess.CompletedProcess[str], list[list[Any]]]:
    """The process after its end, and its results. forked: the variables of that fixture."""
    paths = folder / "jobs.json", folder / "results.json"
    paths[0].write_text(json.dumps(jobs, default=str))
    command = [sys.executable, __file__, *map(str, (grid.folder, *paths, ranks))]
    process = processes.run(command, **forked)
    assert paths[1].is_file(), process.stderr[-3000:]
    return process, json.loads(paths[1].read_text())


def main() -> int:
    *paths, world = sys.argv[1:]
    torch.set_num_threads(1)
    quiet_libraries()
    shared, started = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RIB_LAUNCH": "1"}, []
    for rank in map(str, range(int(world))):
        if (child := os.fork()) == 0:
            os.environ |= {**shared, "RANK": rank, "LOCAL_RANK": rank}
            return entry.guarded(lambda: work(*map(Path, paths)))
        started.append(child)
    codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started}
    assert len(codes) == 1, codes
    return codes.pop()


def work(folder: Path, jobs: Path, results: Path) -> None:
    device, outcomes = ranks.start("cpu"), []
    try:
        for job in json.loads(jobs.read_text(encoding="utf-8")):
            outcomes.append(result(folder, device, job))
    except PreemptedError as error:
        outcomes.append([str(error)])
        raise
    finally:
        if ranks.rank() == 0:
            results.write_text(json.dumps(outcomes), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    sys.exit(main())
