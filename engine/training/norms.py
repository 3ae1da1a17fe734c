"""Batch norms in training: on several ranks their statistics are those of the whole micro-batch.

torch's SyncBatchNorm runs on GPUs only, and would count the filler of a rank without samples.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.machine import ranks
from engine.training.schedule import Share

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


class BatchNorms:
    """The batch norms of a network that are in training mode; the rest stays as it is."""

    def __init__(self, net: nn.Module) -> None:
        """Make them share statistics where there are several ranks.

        Raises ValueError for a class of batch norm that cannot share them.
        """
        self._norms: list[Any] = [
            module for module in net.modules() if isinstance(module, _BatchNorm) and module.training
        ]
        if ranks.world() == 1:
            return
        for norm in self._norms:
            if type(norm) not in KINDS:
                raise ValueError(
                    f"ranks cannot share the statistics of {type(norm).__name__}: set "
                    "train.freeze_batchnorm=true, or train on a single rank"
                )
            norm.__class__ = _shared(type(norm))

    def expect(self, share: Share) -> None:
        """Announce the next batch; where no rank has a sample, no statistics are taken."""
        for norm in self._norms:
            norm.training = share.samples > 0
            norm.share = share


class _Total(torch.autograd.Function):
    """The sum of a tensor over all ranks. Each rank's loss depends on it, so gradients add up."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor) -> torch.Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


@functools.cache
def _shared(kind: type[nn.Module]) -> type[nn.Module]:
    @torch.compiler.disable
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return kind.forward(self, x)
        y = _normalised(self, x)
        return self.act(self.drop(y)) if issubclass(kind, BatchNormAct2d) else y

    return type(f"Shared{kind.__name__}", (kind,), {"forward": forward})


def _normalised(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """x [b, C, ...] normalised by statistics over all ranks; updates the running statistics."""
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    counts = float(norm.share.weight > 0)
    values = norm.share.samples * x[0, 0].numel()  # of a channel, over all ranks
    if values == 1:
        raise ValueError(
            "a batch norm cannot train on a single value a channel: set "
            "train.freeze_batchnorm=true, or another train.batch_size"
        )
    x32 = x.float()
    mean_C = _Total.apply(counts * x32.sum(dims)) / values
    centred = x32 - mean_C.view(shape)
    variance_C = _Total.apply(counts * centred.square().sum(dims)) / values
    y = centred * (variance_C + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            momentum = norm.momentum
            if momentum is None:  # a cumulative mean
                momentum = 1 / norm.num_batches_tracked.item()
            norm.running_mean.lerp_(mean_C, momentum)
            norm.running_var.lerp_(variance_C * (values / (values - 1)), momentum)
    return y.to(x.dtype)
