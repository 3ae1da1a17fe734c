"""What one training step and one evaluated batch ask of a GPU's host: launches, and no wait."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from engine import models
from engine.evaluation import bank, features
from engine.evaluation.batches import read_batches, reduced
from engine.evaluation.reduction import Reduction
from engine.models.execution import Form
from engine.training import loop, optim
from engine.training.saving import Saving
from helpers.children import traced
from helpers.fake_cuda import CUDA, FORM, fake_gpu, moved, on_fake_gpu, run_traced
from helpers.grids import prepared
from helpers.launches import counted
from loaders.batches import on_device

# Launches under bf16 without torch.compile, which makes few of them: most are copies to bf16.
A_TENSOR = 6  # of the network, a step of fine-tuning; an evaluated batch takes a third
# What a step of a method adds to one of fine-tuning: a pull is one kernel, LwF reads its teacher's
# logits from memory, SPD projects each tensor, and a prompt has no step of the network.
ADDED = {"fine_tune": 0, "ewc": 1, "lwf": 2, "spd": 100, "visual_prompt": 0}


@pytest.mark.slow
def test_steps_and_batches_on_fake_tensors(tmp_path, pytestconfig):
    run_traced(__file__, tmp_path, pytestconfig)


class Marks(Saving):
    """Saves nothing but the counts after every optimizer step."""

    def __init__(self, counts):
        super().__init__()
        self.counts, self.launches, self.waits = counts, [], []

    def take(self, progress, method):
        self.launches.append(self.counts.launches.copy())
        self.waits.append(self.counts.waits.copy())

    @property
    def last_step(self) -> tuple[Counter[str], Counter[str]]:
        return self.launches[-1] - self.launches[-2], self.waits[-1] - self.waits[-2]


def a_step(grid, name, monkeypatch, *words):
    """Launches and waits of the last step of training by `engine.training.loop`."""
    words = (f"method={name}", *FORM, "train.epochs=1", "train.warmup_steps=0", *words)
    was = prepared(grid, *words)
    builder, method = was.builder, was.method
    # These read the loss and the weights, a few times an epoch.
    monkeypatch.setattr(loop, "mean_loss", lambda *_: 0.0)
    monkeypatch.setattr(loop, "is_finite", lambda *_: True)
    monkeypatch.setattr(optim.Penalised, "penalty", lambda self: 0.0)
    monkeypatch.setattr(optim, "count_above", lambda *_: 0)  # once, before the first step
    with on_fake_gpu(builder) as run:
        moved(method)
        method.autocast = run.autocast
        if name == "spd":  # its lists hold the parameters that were there before
            method.thetas = [p for p in method.net.parameters() if p.requires_grad]
            method.anchors = [theta.detach().clone() for theta in method.thetas]
        if hasattr(method, "teacher"):
            method.teacher = features.teacher(run, run.base, run.target)
        with loop.initialized(method, run) as engine, counted(run=False) as counts:
            marks = Marks(counts)
            loop.epochs(engine, method, run, marks)
    return marks.last_step


@pytest.fixture(scope="module")
def plain(grid) -> int:
    """Launches of a step of fine-tuning."""
    with pytest.MonkeyPatch.context() as patch:
        launches, waits = a_step(grid, "fine_tune", patch, "optimizer.name=sgd")
    assert not waits
    tensors = len([*prepared(grid).method.net.parameters()])
    assert tensors < launches.total() <= A_TENSOR * tensors, launches
    return launches.total()


@traced
@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "sgd") for name in ADDED), ("ewc", "adamw")]
)
def test_traced_steps_wait_for_nothing(grid, plain, name, optimizer, monkeypatch):
    launches, waits = a_step(grid, name, monkeypatch, f"optimizer.name={optimizer}")
    assert not waits
    assert launches.total() <= plain + ADDED[name], launches
    kernels = {kernel: n for kernel, n in launches.items() if kernel.endswith("_kernel")}
    pulls = {"_step_kernel": 1} if name == "ewc" else {}
    assert kernels == {"_distill_kernel": 1} | pulls


@traced
def test_traced_steps_that_clip_wait_for_nothing(grid, monkeypatch):
    """Norms are one launch for each gradient at most, and scaling is one for all."""
    launches, waits = a_step(grid, "ewc", monkeypatch, "optimizer.name=adamw", "train.clip=1")
    assert not waits
    assert launches["_foreach_norm"] == launches["_foreach_mul_"] == 1, launches


@traced
def test_traced_batches_wait_for_nothing(grid):
    builder = prepared(grid, *FORM).builder
    with on_fake_gpu(builder) as run:
        labelled, cell = run.target, run.base
        nets = []
        bank.Bank(run).in_groups([{cell.name: 1.0}], lambda _, models: nets.extend(models))
        normalize = models.Normalize(run.recipe.model, CUDA)
        reduction = Reduction(labelled, CUDA)
        kind = Form.of(run.recipe.evaluate, CUDA).precision
        counts = []
        for batches in (1, 2, 3):
            piece = labelled.split("all")[: batches * run.recipe.evaluate.batch_size]
            with counted(run=False) as count:
                (pixels,) = read_batches(run, run.sets.source(labelled.name).batches, [piece], "")
                reduced(run, normalize, [(nets[0], reduction)], pixels, kind)
            counts.append(count)
    launches = counts[2].launches - counts[1].launches
    tensors = len([*builder.network(cell).parameters()])
    assert tensors < launches.total() <= A_TENSOR / 3 * tensors, launches
    assert not counts[2].waits


@traced
def test_traced_waits_are_seen():
    """What the other tests say is not there."""
    with fake_gpu(), counted(run=False) as counts:
        on_gpu, on_host = torch.empty(3, device=CUDA), torch.empty(3)
        on_device(np.zeros(3), CUDA)
        assert not counts.waits
        on_host.to(CUDA)
        on_host.to(CUDA, non_blocking=True)  # from memory that is not pinned
        torch.tensor([1.0, 2.0], device=CUDA)
        on_gpu.copy_(on_host)
        on_gpu.cpu()
        assert counts.waits == {"_to_copy": 4, "copy_": 1, "cpu": 1}
        for wait in (torch.Tensor.item, torch.nonzero, bool, torch.Tensor.unique):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                wait(on_gpu[:1])
