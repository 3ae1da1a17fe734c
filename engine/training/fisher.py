"""The diagonal Fisher of a pretrained model on the upstream dataset, for EWC."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from engine import models
from engine.machine import ranks
from engine.machine.terminal import progress_bar
from engine.run import Run
from kernels.fisher import FisherAccumulator


def diagonal(run: Run, images: int, labels: str) -> dict[str, torch.Tensor]:
    """E[(d log p(y|x) / d theta)^2] by parameter name (float32), from per-example gradients.

    images: number of images of the upstream training split, drawn with a seed; 0: all.
    labels: `model` draws y from the model's prediction (the Fisher), `data` uses the true label,
    `reversed` the true label and the negated logits (EWC-DR).
    Ranks divide the batches; labels do not depend on the number of ranks, so results differ only by
    rounding. Raises ValueError for any other `labels`.
    """
    if labels not in ("model", "data", "reversed"):
        raise ValueError(f"method.fisher_labels={labels!r}: give `model`, `data` or `reversed`")
    upstream, size = run.upstream, run.recipe.train.batch_size
    positions = upstream.split("train")
    if 0 < images < len(positions):
        positions = np.sort(np.random.default_rng(0).permutation(positions)[:images])
    net = run.network(run.base)
    normalize = models.Normalize(run.recipe.model, run.device)
    chunks = [positions[i : i + size] for i in range(0, len(positions), size)]
    bounds = [len(chunks) * rank // ranks.world() for rank in (ranks.rank(), ranks.rank() + 1)]
    generator = torch.Generator(run.device).manual_seed(0)
    accumulator = FisherAccumulator(
        net, mask=upstream.mask, generator=generator, reverse=labels == "reversed"
    )
    of_rank = range(*bounds)
    batches = run.sets.source(upstream.name).batches([chunks[number] for number in of_rank])
    batches = iter(progress_bar(batches, "Fisher", len(of_rank), unit="batch"))
    for number, chunk in enumerate(chunks):
        if number not in of_rank:
            accumulator.skip(len(chunk))
            continue
        batch = next(batches)
        given = None if labels == "model" else upstream.labels[batch.index].to(run.device)
        accumulator.update(normalize(batch.images), given)
    if ranks.world() > 1:
        for total in accumulator.sums.values():
            dist.all_reduce(total)
    return {name: total / len(positions) for name, total in accumulator.sums.items()}
