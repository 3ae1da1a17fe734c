"""Projections: after a step, parameters that moved against their gradient are drawn back.

Selective projection decay decides a parameter at a time from three numbers: the inner product of
its gradient with its offset from the anchor before the step, and the offset's norms before and
after. They are computed by hooks around the step of any optimizer. Under ZeRO each rank holds
pieces of parameters, so their sums are added over the ranks; 24 bytes a parameter tensor.
"""

# pyright: reportPrivateImportUsage=false
# torch._foreach_*: a launch for many small tensors, as torch's own optimizers do it.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from engine.methods.objectives import Projection
from engine.training import shards
from engine.training.shards import Piece, Pieces


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
        self._thetas = [piece.inside(holder) for holder, piece, _ in moving]
        self._origin = [anchor for _, _, anchor in moving]
        numbers = [self._number[piece.name] for _, piece, _ in moving]
        if numbers != self._listed:  # copied once: the copy would make the host wait in each step
            self._listed = numbers
            self._numbers = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        grads = [p.inside(h.grad) for h, p, _ in moving if h.grad is not None]
        offsets = self._offsets()
        self._sums = [self._totals(grads, offsets), self._totals(offsets, offsets)]

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        offsets = self._offsets()
        sums_3T = torch.stack([*self._sums, self._totals(offsets, offsets)])
        if self._is_sharded:
            dist.all_reduce(sums_3T)
        if not offsets:
            return
        ascent_T, (before_T, after_T) = sums_3T[0], sums_3T[1:].sqrt()
        ratio_T = ((after_T - before_T) / after_T).clamp(0, 1)
        # Also where the offset is 0 and the ratio no number: nothing is there to draw back.
        ratio_T = torch.where((ascent_T > 0) & (after_T > 0), ratio_T, 0.0)
        shares = (self._lam * ratio_T).float()[self._numbers].unbind()
        torch._foreach_mul_(offsets, list(shares))
        torch._foreach_sub_(self._thetas, offsets)

    def _offsets(self) -> list[Tensor]:
        # A rank's partition may be padding alone, and foreach functions take no empty list.
        return list(torch._foreach_sub(self._thetas, self._origin)) if self._thetas else []

    def _totals(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Inner products [T] (float64) of parameters from those of their pieces on this rank."""
        totals_T = torch.zeros(len(self._number), dtype=torch.float64, device=self._device)
        if a:
            products = torch._foreach_mul(a, b)
            sums = torch.stack([product.sum(dtype=torch.float64) for product in products])
            totals_T.index_add_(0, self._numbers, sums)
        return totals_T


def _as_stored(anchor: Mapping[str, Tensor], piece: Piece, holder: Tensor) -> Tensor:
    """A copy of the anchor's piece with the memory layout of the optimizer's."""
    like = torch.empty_like(piece.inside(holder), dtype=torch.float32, requires_grad=False)
    return like.copy_(piece.cut(anchor[piece.name].detach()))
