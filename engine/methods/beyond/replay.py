"""Replay: fine-tunes on upstream images too (Rolnick et al. 2019).

    loss_b = CE_b + weight * mean_k CE(u_bk),  k = 1, ..., images

u_bk are images of the upstream training split, drawn anew for each downstream image b and epoch.
`images: 1` with `weight: 1` is the mixture of one new and one old image that Rolnick et al. use.

Differs from the authors' code: draws are uniform over all old images; the authors' buffer holds a
part of them.

Draws depend on seed, epoch and downstream image alone, so ranks, accumulation and interruptions do
not change them. Upstream and downstream images pass through the model together, so batch norms that
train see both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from engine.methods.base import Context, Trained
from engine.methods.beyond.options.replay import Recipe
from loaders.batches import Batch


class Method(Trained):
    recipe: Recipe
    step_1: torch.Tensor  # optimizer steps so far; checkpoints include it

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        recipe, upstream, target = context.recipe, context.upstream, context.target
        self.seed = recipe.seed
        self.steps_an_epoch = recipe.train.steps_an_epoch(len(target.training(recipe)))
        self.positions = upstream.split("train")
        self.past = context.sets.source(upstream.name)
        self.past_targets_M = upstream.labels.to(context.device)
        self.past_mask_C = None if upstream.mask is None else upstream.mask.to(context.device)
        # DeepSpeed broadcasts buffers as bytes, and a 0-d tensor cannot be viewed as bytes.
        self.register_buffer("step_1", torch.zeros(1, dtype=torch.int64, device=context.device))
        self.step: int | None = None  # `step_1` on the host, once the first batch has read it
        self.drawn_in, self.drawn_NK = -1, np.zeros(0, np.int64)

    def drawn(self, index: np.ndarray) -> np.ndarray:
        """Positions [b, K] (int64) of the upstream images for downstream images `index` [b]."""
        if self.step is None:
            self.step = int(self.step_1)
        epoch = self.step // self.steps_an_epoch
        if epoch != self.drawn_in:
            size = len(self.targets_N), self.recipe.images
            generator = np.random.default_rng([self.seed, epoch, 1])  # 1: not the order's
            self.drawn_in, self.drawn_NK = epoch, generator.choice(self.positions, size)
        return self.drawn_NK[index]

    def loss(self, batch: Batch) -> torch.Tensor:
        from kernels.distill import distill_loss  # late, as in `base`

        (past,) = self.past.batches([self.drawn(batch.index).flatten()])
        logits_AC = self.net(self.normalize(torch.cat([batch.images, past.images])))
        new_BC, old_PC = logits_AC[: len(batch)], logits_AC[len(batch) :]
        new_B = distill_loss(self.grouped(new_BC), None, self.targets(batch), mask=self.mask_C)
        old_P = distill_loss(old_PC, None, self.past_targets_M[past.rows], mask=self.past_mask_C)
        return new_B + self.recipe.weight * old_P.view(len(batch), -1).mean(1)

    def after_step(self) -> None:
        self.step_1 += 1
        assert self.step is not None, "a batch has read it"
        self.step += 1
