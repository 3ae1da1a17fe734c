"""The diagonal Fisher of a pre-trained model on the upstream set, for EWC."""

from __future__ import annotations

import json
import logging
import time

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from engine import models
from engine.data.sets import LabelledSet
from engine.machine import ranks
from engine.run import Run
from engine.store.checkpoints import CheckpointFiles
from kernels.fisher import FisherAccumulator

log = logging.getLogger(__name__)


def diagonal(
    run: Run, images: int, labels: str, files: CheckpointFiles | None = None
) -> dict[str, torch.Tensor]:
    """E[(d log p(y|x) / d theta)^2] by parameter name (float32), from per-example gradients.

    images: how many of the upstream training split, drawn with a seed; all where it has no more,
    and for 0.
    labels: `model` draws y from the model's prediction (the Fisher), `data` takes the true label.
    Each rank takes a share of the batches; labels are drawn alike on any number of ranks, so that
    only sums round otherwise. files: of this rank among so many, where its sums are stored every
    `train.checkpoint_minutes`; from the last of them the pass goes on, bit for bit. Raises
    ValueError for any other `labels`.
    """
    if labels not in ("model", "data"):
        raise ValueError(f"method.fisher_labels={labels!r}: `model` or `data`")
    upstream = run.upstream
    positions = drawn(upstream, images)
    if images > len(positions):
        log.warning(
            f"method.fisher_images={images}: all {len(positions)} training images of "
            f"{upstream.name} are taken, which has no more"
        )
    net = run.network(run.base)
    normalize = models.Normalize(run.recipe.model, run.device)
    size = run.recipe.train.batch_size
    chunks = [positions[i : i + size] for i in range(0, len(positions), size)]
    bounds = [len(chunks) * rank // ranks.world() for rank in (ranks.rank(), ranks.rank() + 1)]
    generator = torch.Generator(run.device).manual_seed(0)
    accumulator = FisherAccumulator(net, mask=upstream.mask, generator=generator)
    minutes = run.recipe.train.checkpoint_minutes
    checkpoints = _Checkpoints(accumulator, files, minutes) if files and minutes else None
    done = checkpoints.restore() if checkpoints else 0
    of_rank = range(bounds[0] + done, bounds[1])
    batches = run.sets.source(upstream.name).batches([chunks[number] for number in of_rank])
    batches = iter(tqdm(batches, "Fisher", len(of_rank), leave=False, unit="batch"))
    for number, chunk in enumerate(chunks):
        if number not in of_rank:
            accumulator.skip(len(chunk))
            continue
        batch = next(batches)
        given = upstream.labels[batch.index].to(run.device) if labels == "data" else None
        accumulator.update(normalize(batch.images), given)
        if checkpoints:
            checkpoints.take(number + 1 - bounds[0])
    if ranks.world() == 1:
        return accumulator.mean()
    for total in accumulator.sums.values():
        dist.all_reduce(total)
    return {name: total / len(positions) for name, total in accumulator.sums.items()}


class _Checkpoints:
    """Stores the sums of a rank by the clock, by the number of its batches that are in them."""

    def __init__(
        self, accumulator: FisherAccumulator, files: CheckpointFiles, minutes: float
    ) -> None:
        self._accumulator, self._files, self._wait_s = accumulator, files, 60 * minutes
        self._last = time.monotonic()

    def restore(self) -> int:
        """Go on from the last whole checkpoint; returns its number of batches."""
        if batches := self._files.newest():
            sums, facts = self._files.read(batches)
            self._accumulator.restore(sums, **facts)
            log.info("the Fisher goes on after batch %d in %s", batches, self._files.folder)
        return batches

    def take(self, batches: int) -> None:
        """Store the sums if it is time."""
        if time.monotonic() - self._last < self._wait_s:
            return
        accumulator, self._last = self._accumulator, time.monotonic()
        facts = {"images": accumulator.images, "fallback": sorted(accumulator.fallback)}
        try:
            self._files.write(batches, accumulator.sums, json.dumps(facts))
        except OSError as error:  # the pass itself needs no room
            log.warning(f"the Fisher goes on without the checkpoint of batch {batches}: {error}")


def drawn(upstream: LabelledSet, images: int) -> np.ndarray:
    """Positions (int64, sorted) of so many images of the training split; 0 and more: all of it."""
    positions = upstream.split("train")
    if not images or images >= len(positions):
        return positions
    return np.sort(np.random.default_rng(0).permutation(positions)[:images])
