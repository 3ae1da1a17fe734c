"""Training one cell through DeepSpeed.

The batch is global: each rank takes its slice of the same seeded order, and samples, not ranks, are
averaged, so the number of ranks changes only the time. Losses stay on the device and are read a few
times an epoch; a loss that is not finite stops the run, and the error names the step.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from engine.machine import bars, ranks
from engine.methods.base import Trained
from engine.methods.context import Context
from engine.models import compiled
from engine.recipe.schema import TrainRecipe
from engine.run import Run
from engine.store.cells import Export
from engine.training import norms, optim
from engine.training.saving import Progress, Saving, TrainingState
from engine.training.schedule import schedule, steps_an_epoch, total_steps
from engine.training.trackers import Trackers
from engine.training.watch import Watch

LOOK_EVERY = 50  # optimizer steps between two reads of the loss
WARMUP_STEPS = 196  # the benchmark's


def fit(
    method: Trained,
    run: Run,
    context: Context,
    saving: Saving,
) -> tuple[Export, str]:
    """Train a method from the run's base model; returns its export and the history as JSON.

    context: gives the method what its loss needs. saving: takes the model during training, and says
    where one begins that was interrupted; a head that is fitted has no steps and leaves nothing.
    Raises ValueError for a batch that does not divide over the ranks, DivergedError for a loss that
    is not finite, PreemptedError as `Saving.take`.
    """
    prepare(method, run, context)
    if method.fits_head:
        history = [method.fit_head(_label(run))]
    else:
        engine = initialize(method, run)
        try:
            history = epochs(engine, method, run, saving)
        finally:
            close(engine)
    return method.export(), json.dumps(history, indent=1)


def prepare(method: Trained, run: Run, context: Context) -> None:
    """Prepare a method from the run's base model, with the recipe's seed."""
    net = run.network(run.base)
    torch.manual_seed(run.recipe.seed)
    method.prepare(net, context)
    method.to(run.device)


def initialize(method: Trained, run: Run) -> Any:
    """A DeepSpeed engine around a prepared method.

    Raises ValueError for a batch that does not divide over the ranks, and as `norms.synchronise`.
    """
    import deepspeed  # late: it reads DS_ACCELERATOR, which `ranks.start` sets

    recipe = run.recipe
    micro, rest = divmod(recipe.train.batch_size, ranks.world() * recipe.train.accumulation)
    if rest:
        raise ValueError(
            f"train.batch_size={recipe.train.batch_size} does not divide into {ranks.world()} "
            f"ranks x train.accumulation={recipe.train.accumulation}"
        )
    norms.synchronise(method, run)
    parameters = {n: p for n, p in method.named_parameters() if p.requires_grad}
    optimizer = optim.build(parameters, recipe.optimizer, method.penalty, method.rates)
    method.penalty = None  # the optimizer has a copy
    compiled.in_place(method.net, recipe.train.compile, run.device)
    engine, *_ = deepspeed.initialize(
        model=method,
        optimizer=optimizer,
        config={
            "train_batch_size": recipe.train.batch_size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": recipe.train.accumulation,
            "gradient_clipping": recipe.train.clip,
            "steps_per_print": 2**31,
            "timers": {"throughput": {"enabled": False}},  # they wait for the GPU in every step
        },
    )
    if ranks.world() == 1:
        engine.enable_backward_allreduce = False  # among a single rank it costs 3-6% of a step
    if recipe.model.channels_last:
        # Only now: deepspeed broadcasts weights as bytes, which this layout does not allow.
        method.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return engine


def close(engine: Any) -> None:
    """Free an engine and remove its hooks, by which the module would keep it alive."""
    engine.destroy()
    for name in ("module_forward_pre_hook", "module_forward_post_hook"):
        hook = getattr(engine, name, None)
        if hook is not None:
            hook.remove()


def epochs(
    engine: Any,
    method: Trained,
    run: Run,
    saving: Saving | None = None,
) -> list[dict[str, float]]:
    """Train an initialised method by its recipe; returns the history, an entry an epoch."""
    recipe = run.recipe
    positions = run.target.training(recipe)
    of_epoch = steps_an_epoch(recipe.train, len(positions))
    total = total_steps(recipe.train, len(positions))
    warmup = warmup_steps(recipe.train, total)

    def rate(step: int) -> float:
        return optim.learning_rate(step, total, warmup, recipe.optimizer.lr)

    source = run.sets.source(recipe.downstream)
    watch = Watch(method, run.device, _label(run))
    tracked = Trackers(recipe)
    learning = norms.learning(method)
    is_penalised = isinstance(engine.optimizer, optim.Penalised)
    saving = saving or Saving()
    progress = saving.begin(TrainingState(engine, method, {"loss": watch.sum}))
    step, history, watch.count = progress.step, progress.history, progress.losses
    since, images = time.perf_counter(), 0
    bar = bars.bar(total=total, initial=step, desc=_label(run), unit="step")
    with bar, tracked:
        for epoch in range(step // of_epoch, recipe.train.epochs):
            engine.train()
            shares = list(schedule(positions, run, epoch, ranks.rank(), ranks.world()))
            shares = shares[(step - epoch * of_epoch) * recipe.train.accumulation :]
            batches = source.batches(share.index for share in shares)
            for number, (share, batch) in enumerate(zip(shares, batches, strict=True), start=1):
                last = number % recipe.train.accumulation == 0
                if last:
                    lr = rate(step)
                    optim.set_rate(engine.optimizer, lr)
                for norm in learning:
                    norm.training = share.samples > 0  # a filler must not change statistics
                with norms.remedy():
                    loss = engine(batch).sum() * share.weight
                engine.backward(loss)
                if last:
                    method.before_step()
                engine.step()
                if last:
                    method.after_step()
                watch.add(loss.detach())
                images += len(share.index)
                if not last:
                    continue
                step += 1
                bar.update()
                if step % LOOK_EVERY == 0 or step % of_epoch == 0:
                    mean = watch.look(step, lr)
                    bar.set_postfix(loss=f"{mean:.3f}", lr=f"{lr:.1e}")
                    now = time.perf_counter()
                    values = {"loss": mean, "lr": lr, "images/s": images / (now - since)}
                    tracked.log({f"train/{k}": v for k, v in values.items()}, step)
                    since, images = now, 0  # of this rank
                if step % of_epoch == 0:
                    history.append({"epoch": epoch + 1, "step": step, "loss": mean, "lr": lr})
                    if is_penalised:  # by the optimizer, beside the loss
                        history[-1]["penalty"] = engine.optimizer.penalty()
                        tracked.log({"train/penalty": history[-1]["penalty"]}, step)
                    watch.check_weights(step, lr)
                saving.take(Progress(step, history, watch.count, ranks.world()), method)
    return history


def warmup_steps(train: TrainRecipe, total: int) -> int:
    """Steps of the warm-up of a run of `total` steps: by default the benchmark's, at most a tenth.

    Raises ValueError for a recipe's warm-up that never ends.
    """
    if train.warmup_steps is None:
        return min(WARMUP_STEPS, total // 10)
    if train.warmup_steps > total:
        raise ValueError(
            f"train.warmup_steps={train.warmup_steps}, but training has {total} steps, so its rate "
            "would never reach optimizer.lr: set train.warmup_steps=null for a tenth of the steps, "
            "or raise train.epochs"
        )
    return train.warmup_steps


def _label(run: Run) -> str:
    return f"{run.recipe.method.title} on {run.recipe.downstream}"
