"""Batch norms whose statistics change, with batches divided over ranks and micro-batches."""

from __future__ import annotations

from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.machine import ranks
from engine.methods.base import Trained
from engine.run import Run

FREEZE = "set train.freeze_batchnorm=true"


def learning(method: Trained) -> list[nn.Module]:
    """The batch norms of a method's network whose statistics change in training."""
    norms = [m for m in method.train().net.modules() if isinstance(m, _BatchNorm)]
    return [norm for norm in norms if norm.training]


def synchronise(method: Trained, run: Run) -> None:
    """On several ranks, let batch norms use the whole micro-batch (torch's SyncBatchNorm).

    Raises ValueError on CPUs, and if a rank would have no sample of a micro-batch.
    """
    if ranks.world() == 1 or not learning(method):
        return
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
