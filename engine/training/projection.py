"""Projections: after a step, parameters that moved against their gradient are drawn back.

Selective projection decay decides a parameter at a time from three sums (`kernels.projection`),
made by hooks around the step of any optimizer. Under ZeRO each rank holds pieces of parameters, so
their sums are added over the ranks; 24 bytes a parameter tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from engine.methods.objectives import Projection
from engine.training import shards
from engine.training.shards import Piece, Pieces, in_memory_order
from kernels.projection import offset_products_, project_


def attach(engine: Any, projection: Projection) -> None:
    """Project after every step of the optimizer inside a DeepSpeed engine.

    Call it once after deepspeed.initialize; every rank stores only what its partition needs. Does
    nothing for a strength of 0. Raises ValueError for a trained parameter that the anchor lacks or
    has in another shape, and as `shards.pieces`.
    """
    if projection.lam == 0:
        return
    shards.check(shards.trained(engine), projection.anchor, "anchor")
    optimizer = shards.inner(engine)
    is_sharded = optimizer is not engine.optimizer
    Projector(optimizer, shards.pieces(engine), projection, is_sharded)


class Projector:
    """The hooks around an optimizer's step, with the anchor's pieces (fp32)."""

    def __init__(
        self, optimizer: Optimizer, pieces: Pieces, projection: Projection, is_sharded: bool
    ) -> None:
        """is_sharded: other ranks hold other pieces, in as many optimizer steps as this rank."""
        self._lam, self._is_sharded = projection.lam, is_sharded
        self._device = next(iter(pieces)).device
        self._listed: list[int] | None = None
        self._number = {name: number for number, name in enumerate(projection.anchor)}
        self._anchors = [
            (holder, piece, _as_stored(projection.anchor, piece, holder))
            for holder, held in pieces.items()
            for piece in held
        ]
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        held = {theta for group in optimizer.param_groups for theta in group["params"]}
        moving = [row for row in self._anchors if row[0] in held and row[0].grad is not None]
        thetas = [piece.inside(holder) for holder, piece, _ in moving]
        grads = [p.inside(h.grad) for h, p, _ in moving if h.grad is not None]
        self._thetas, grads, self._origin = (
            in_memory_order(tensors, thetas)
            for tensors in (thetas, grads, [anchor for _, _, anchor in moving])
        )
        self._names = [piece.name for _, piece, _ in moving]
        self._sums_3T = torch.empty(3, len(moving), dtype=torch.float64, device=self._device)
        offset_products_(self._thetas, self._origin, grads, out=self._sums_3T[:2])

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        offset_products_(self._thetas, self._origin, out=self._sums_3T[2:])
        sums_3T = self._over_ranks(self._sums_3T) if self._is_sharded else self._sums_3T
        project_(self._thetas, self._origin, sums_3T, self._lam)

    def _over_ranks(self, sums_3T: Tensor) -> Tensor:
        """Sums of whole parameters from those of their pieces on every rank."""
        numbers = [self._number[name] for name in self._names]
        if numbers != self._listed:  # copied once: the copy would make the host wait in each step
            self._listed = numbers
            self._numbers = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        sums_3N = sums_3T.new_zeros(3, len(self._number)).index_add_(1, self._numbers, sums_3T)
        dist.all_reduce(sums_3N)
        return sums_3N.index_select(1, self._numbers)


def _as_stored(anchor: Mapping[str, Tensor], piece: Piece, holder: Tensor) -> Tensor:
    """A copy of the anchor's piece with the memory layout of the optimizer's."""
    like = torch.empty_like(piece.inside(holder), dtype=torch.float32, requires_grad=False)
    return like.copy_(piece.cut(anchor[piece.name].detach()))
