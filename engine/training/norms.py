"""Batch norms that learn, where a batch is cut over ranks and micro-batches."""

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
    """On several ranks, let batch norms learn from the whole micro-batch (torch's SyncBatchNorm).

    Raises ValueError on CPUs, and where a rank would have no sample of a micro-batch.
    """
    if ranks.world() == 1 or not learning(method):
        return
    if run.device.type != "cuda":
        raise ValueError(
            f"batch norms learn on several ranks on GPUs only: {FREEZE}, or train on a single rank"
        )
    train = run.recipe.train
    last = len(run.target.training(run.recipe)) % train.batch_size or train.batch_size
    if (fewest := max(1, last // train.accumulation)) < ranks.world():
        raise ValueError(
            f"the last micro-batch of an epoch has {fewest} of the {ranks.world()} images that the "
            f"ranks need for batch norms to learn: {FREEZE}, or another train.batch_size"
        )
    method.net = convert_sync_batchnorm(method.net)
