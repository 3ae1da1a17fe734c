"""Train one cell with DeepSpeed.

The batch is global: each rank takes its slice of the same seeded order, and weights each sample by
the whole batch, so the number of ranks changes only how sums round. Losses stay on the device and
are read a few times per epoch; a loss that is not finite raises an error that names the step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from engine.errors import DivergedError
from engine.machine import precision, ranks
from engine.machine.compat import BatchNorm
from engine.machine.layers import pass_on_bf16
from engine.machine.terminal import progress_bar
from engine.methods.base import Context, Trained
from engine.models.execution import compile_in_place
from engine.run import Run
from engine.store.cells import Export
from engine.training import optim
from engine.training.batches import batches, epoch_shares
from engine.training.saving import Saving, TrainingProgress, TrainingState
from engine.training.trackers import Trackers

LOOK_EVERY = 50  # optimizer steps between two reads of the loss
FREEZE = "set train.freeze_batchnorm=true"


def fit(method: Trained, context: Context, saving: Saving) -> tuple[Export, str]:
    """Train a method from the base model; returns its export and the history as JSON.

    saving: saves the model during training and restores an interrupted one; a fitted head has no
    steps and saves nothing. Raises as `initialized`, DivergedError for a loss that is not finite,
    PreemptedError as `Saving.take`.
    """
    prepare(method, context)
    if method.fits_head:
        history = [method.fit_head(_label(context))]
    else:
        with initialized(method, context) as engine:
            history = epochs(engine, method, context, saving)
    return method.export(), json.dumps(history, indent=1)


def compile_graphs(method: Trained, context: Context) -> None:
    """Compile the graphs of a training by running its first batch forward and backward.

    No weight changes.
    """
    prepare(method, context)
    if method.fits_head:
        return
    with initialized(method, context) as engine:
        engine.train()
        positions = context.target.training(context.recipe)
        share = next(epoch_shares(positions, context, 0, ranks.rank(), ranks.world()))
        (batch,) = batches(context, [share], 0)
        engine.backward(engine(batch).sum() * share.weight)


def prepare(method: Trained, context: Context) -> None:
    """Prepare a method from the base model, with the recipe's seed."""
    net = context.network(context.base)
    if context.recipe.train.precision == precision.RESIDUAL:
        pass_on_bf16(net)
    torch.manual_seed(context.recipe.seed)
    method.prepare(net, context)
    method.to(context.device)


@contextmanager
def initialized(method: Trained, run: Run) -> Iterator[Any]:
    """A DeepSpeed engine around a prepared method, freed at the end.

    Raises ValueError for a batch that does not divide over the ranks, and as
    `synchronise_norms`.
    """
    import deepspeed  # imported here: it reads DS_ACCELERATOR, which `ranks.start` sets

    recipe = run.recipe
    micro, rest = divmod(recipe.train.batch_size, ranks.world() * recipe.train.accumulation)
    if rest:
        raise ValueError(
            f"train.batch_size={recipe.train.batch_size} is not divisible by {ranks.world()} "
            f"ranks x train.accumulation={recipe.train.accumulation}"
        )
    # SyncBatchNorm would break the graph at every norm, and wait for the GPU there.
    option = "never" if synchronise_norms(method, run) else recipe.train.compile
    parameters = {n: p for n, p in method.named_parameters() if p.requires_grad}
    compile_in_place(method.net, option, run.device)

    def optimizer(_: object) -> torch.optim.Optimizer:
        if recipe.model.channels_last:
            # Only now: deepspeed has sent weights as bytes, which this layout does not allow.
            method.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return optim.build(
            parameters, recipe.optimizer, method.penalty, method.rates, recipe.train.zero
        )

    engine, *_ = deepspeed.initialize(
        model=method,
        optimizer=optimizer,
        config={
            "train_batch_size": recipe.train.batch_size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": recipe.train.accumulation,
            "gradient_clipping": 0.0,  # `optim.clip_` clips; left out, it is 1
            "steps_per_print": 2**31,
            "timers": {"throughput": {"enabled": False}},  # they wait for the GPU in every step
        },
    )
    if ranks.world() == 1:
        engine.enable_backward_allreduce = False  # among a single rank it costs 3-6% of a step
    # `Share.weight` divides; DeepSpeed would read and write all gradients once more.
    engine.gradient_average = False
    method.penalty = None  # the optimizer has a copy
    try:
        yield engine
    finally:
        engine.destroy()
        for name in ("module_forward_pre_hook", "module_forward_post_hook"):
            if hook := getattr(engine, name, None):
                hook.remove()  # by which the module would keep the engine alive


def epochs(
    engine: Any, method: Trained, run: Run, saving: Saving | None = None
) -> list[dict[str, float]]:
    """Train an initialized method by its recipe. Returns the history, one entry per epoch."""
    recipe, train = run.recipe, run.recipe.train
    positions = run.target.training(recipe)
    of_epoch, total = train.steps_an_epoch(len(positions)), train.steps(len(positions))
    warmup = train.warmup(total)
    learning = learning_norms(method)
    losses = torch.zeros((), device=run.device)  # since they were read last
    of_epochs = torch.zeros_like(losses)  # of this epoch, until then
    saving = saving or Saving()
    progress = saving.begin(TrainingState(engine, method, {"loss": losses, "epoch": of_epochs}))
    step, history = progress.step, progress.history
    count, epoch_count = progress.losses, progress.epoch_losses
    since, images = time.perf_counter(), 0
    bar = progress_bar(total=total, initial=step, desc=_label(run), unit="step")
    with bar, Trackers(recipe) as tracked:
        for epoch in range(step // of_epoch, train.epochs):
            engine.train()
            shares = list(epoch_shares(positions, run, epoch, ranks.rank(), ranks.world()))
            shares = shares[(step - epoch * of_epoch) * train.accumulation :]
            for share, batch in zip(shares, batches(run, shares, epoch), strict=True):
                for norm in learning:
                    norm.training = share.samples > 0  # a filler must not change statistics
                loss = engine(batch).sum() * share.weight
                engine.backward(loss)
                losses += loss.detach()
                count += 1
                images += len(share.index)
                if not engine.is_gradient_accumulation_boundary():
                    engine.step()  # counts the micro-batch
                    continue
                lr = optim.learning_rate(step, total, warmup, recipe.optimizer.lr)
                optim.set_rate(engine.optimizer, lr)
                method.before_step()
                if train.clip:
                    optim.clip_(method.parameters(), train.clip)
                engine.step()
                method.after_step()
                step += 1
                bar.update()
                if step % LOOK_EVERY == 0 or step % of_epoch == 0:
                    mean = mean_loss(losses, count)
                    of_epochs += losses
                    epoch_count += count
                    losses.zero_()
                    count = 0
                    if not math.isfinite(mean):
                        raise _diverged(run, "the loss", step, lr)
                    bar.set_postfix(loss=f"{mean:.3f}", lr=f"{lr:.1e}")
                    read_at = time.perf_counter()
                    values = {"loss": mean, "lr": lr, "images/s": images / (read_at - since)}
                    tracked.log({f"train/{k}": v for k, v in values.items()}, step)
                    since, images = read_at, 0  # of this rank
                if step % of_epoch == 0:
                    mean = mean_loss(of_epochs, epoch_count)
                    of_epochs.zero_()
                    epoch_count = 0
                    history.append({"epoch": epoch + 1, "step": step, "loss": mean, "lr": lr})
                    penalty = optim.penalty_of(engine.optimizer)  # not part of the loss
                    if penalty is not None:
                        history[-1]["penalty"] = penalty
                        tracked.log({"train/penalty": penalty}, step)
                    if not is_finite(method):  # the loss does not show what the last step did
                        raise _diverged(run, "a weight", step, lr)
                now = TrainingProgress(step, history, count, ranks.world(), epoch_count)
                saving.take(now, method)
    return history


def learning_norms(method: Trained) -> list[nn.Module]:
    """The batch norms of a method's network whose statistics change in training."""
    norms = [m for m in method.train().net.modules() if isinstance(m, BatchNorm)]
    return [norm for norm in norms if norm.training]


def synchronise_norms(method: Trained, run: Run) -> bool:
    """On several ranks, let batch norms use the whole micro-batch (torch's SyncBatchNorm). Returns
    whether there are any.

    Raises ValueError on CPUs, and if a rank would have no sample of a micro-batch.
    """
    if ranks.world() == 1 or not learning_norms(method):
        return False
    if run.device.type != "cuda":
        raise ValueError(
            f"training batch norms on several ranks requires GPUs: {FREEZE}, or use one rank"
        )
    train = run.recipe.train
    last = len(run.target.training(run.recipe)) % train.batch_size or train.batch_size
    if (fewest := max(1, last // train.accumulation)) < ranks.world():
        raise ValueError(
            f"the last micro-batch of an epoch has {fewest} images, but training batch norms needs "
            f"one per rank ({ranks.world()}): {FREEZE}, or change train.batch_size"
        )
    method.net = convert_sync_batchnorm(method.net)
    return True


def mean_loss(losses: torch.Tensor, count: int) -> float:
    """The mean loss of `count` micro-batches, of which each rank has its part. Waits for the
    device."""
    mean = losses / count
    if ranks.world() > 1:
        dist.all_reduce(mean)
    return mean.item()


def is_finite(method: Trained) -> bool:
    """Whether all trained weights are finite. Waits for the device."""
    sums = [p.detach().sum() for p in method.parameters() if p.requires_grad]
    return bool(torch.stack(sums).isfinite().all())  # a sum is finite only if all numbers are


def _diverged(run: Run, what: str, step: int, lr: float) -> DivergedError:
    return DivergedError(
        f"{_label(run)}: {what} is not finite by step {step} (lr {lr:.2e}); lower optimizer.lr or "
        "set train.clip=1"
    )


def _label(run: Run) -> str:
    return f"{run.recipe.method.title} on {run.recipe.downstream}"
