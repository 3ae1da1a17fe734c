"""The images of each rank, their order and their weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.recipe import image_transform
from engine.run import Run
from loaders.augment import Augment
from loaders.batches import Batch


@dataclass(frozen=True)
class Share:
    """A rank's part of a micro-batch: positions in the pack and the weight of each sample.

    `samples`: of the micro-batch over all ranks.
    """

    index: np.ndarray
    weight: float
    samples: int


def epoch_shares(
    positions: np.ndarray, run: Run, epoch: int, rank: int, world: int
) -> Iterator[Share]:
    """This rank's micro-batches of an epoch, `accumulation` of them for each optimizer step.

    The order depends on seed and epoch only. Summed over ranks and averaged over micro-batches,
    weighted samples give the mean of the global batch, also of an uneven last one. A rank without
    samples gets a sample of weight zero, because every rank must take part in a step. A micro-batch
    has the same samples on any number of ranks, so batch norms see the same.
    """
    recipe = run.recipe
    order = np.random.default_rng([recipe.seed, epoch]).permutation(positions)
    for start in range(0, len(order), recipe.train.batch_size):
        batch = order[start : start + recipe.train.batch_size]
        for micro_batch in np.array_split(batch, recipe.train.accumulation):
            piece = np.array_split(micro_batch, world)[rank]
            if len(piece):
                yield Share(piece, recipe.train.accumulation / len(batch), len(micro_batch))
            else:
                yield Share(batch[:1], 0.0, len(micro_batch))


def batches(run: Run, shares: Sequence[Share], epoch: int) -> Iterator[Batch]:
    """The images of a rank's micro-batches, augmented by the recipe."""
    read = run.sets.training_source(run.recipe).batches(share.index for share in shares)
    if not run.recipe.train.augment:
        yield from read
        return
    train, transform = run.recipe.train, image_transform.transform(run.recipe.model)
    is_bicubic = transform.interpolation == "bicubic"
    augment = Augment(
        transform.image_size, train.augment, train.crop_scale, is_bicubic, run.recipe.seed
    )

    def augmented(batch: Batch) -> torch.Tensor:
        return augment(batch.images, batch.index, epoch)

    for batch in read:
        yield Batch(batch.index, batch.device, functools.partial(augmented, batch))
