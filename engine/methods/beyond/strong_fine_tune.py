"""Fine-tuning with common regularisers. With all of them off, it equals plain fine-tuning.

- `layer_decay`: the ratio of a layer's learning rate to that of the next layer. The head has the
  full rate (Clark et al. 2020; layers are timm's).
- `ema`: export a moving average of the weights, mean += max(1 - ema, t^(-2/3)) (weights - mean)
  after step t = 1, 2, ..., as timm's ModelEmaV3 does with warm-up.
- `label_smoothing`: over the dataset's classes (Szegedy et al. 2016).
- `mixup`: mix image i of a batch of B with image B - 1 - i, as timm does, with one mixing
  coefficient per batch (Zhang et al. 2018).
- `hflip`: probability of flipping an image horizontally.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from engine import models
from engine.machine import ranks
from engine.machine.layers import numbers
from engine.methods.base import Context, Trained
from engine.methods.beyond.options.strong_fine_tune import Recipe
from engine.methods.beyond.teacher import move
from engine.store.cells import Export
from loaders.batches import Batch, on_device


class Method(Trained):
    recipe: Recipe
    step_1: torch.Tensor  # optimizer steps so far

    def prepare(self, net: nn.Module, context: Context) -> None:
        """Raises ValueError for `mixup` or `hflip` on several ranks, and as `layers.numbers`."""
        recipe = self.recipe
        if ranks.world() > 1 and (recipe.mixup or recipe.hflip):
            raise ValueError(
                "method.mixup and method.hflip draw for a whole batch, so they train on one rank: "
                "start it without torchrun, or with --num_gpus 1"
            )
        super().prepare(net, context)
        if recipe.layer_decay < 1:
            layers = numbers(net)
            last = max(layers.values())
            self.rates = {f"net.{n}": recipe.layer_decay ** (last - k) for n, k in layers.items()}
        if recipe.ema:
            self.mean = copy.deepcopy(net).requires_grad_(False)  # a module, so it is checkpointed
            # DeepSpeed broadcasts buffers as bytes, and a 0-d tensor cannot be viewed as bytes.
            self.register_buffer("step_1", torch.zeros(1, device=context.device))
        if recipe.label_smoothing:
            mask_C = torch.ones(models.head(net).out_features, dtype=torch.bool)
            mask_C = mask_C if context.target.mask is None else context.target.mask
            self.outputs_K = mask_C.nonzero().squeeze(1).to(context.device)

    def loss(self, batch: Batch) -> torch.Tensor:
        recipe = self.recipe
        x, share = self.normalize(batch.images), 1.0
        if recipe.hflip:
            flips_B = on_device(torch.rand(len(batch)) < recipe.hflip, x.device)
            x = torch.where(flips_B[:, None, None, None], x.flip(-1), x)
        if recipe.mixup:
            share = torch.distributions.Beta(recipe.mixup, recipe.mixup).sample().item()
            x = share * x + (1 - share) * x.flip(0)
        logits_BC, targets_B = self.grouped(self.net(x)), self.targets(batch)
        losses_B = self._cross_entropy(logits_BC, targets_B)
        if not recipe.mixup:
            return losses_B
        return share * losses_B + (1 - share) * self._cross_entropy(logits_BC, targets_B.flip(0))

    def _cross_entropy(self, logits_BC: torch.Tensor, targets_B: torch.Tensor) -> torch.Tensor:
        """Losses [b] over the dataset's classes."""
        smoothing = self.recipe.label_smoothing
        if not smoothing:
            return self._losses(logits_BC, targets_B)
        logits_BK = logits_BC[:, self.outputs_K]
        places_B = torch.searchsorted(self.outputs_K, targets_B)
        return F.cross_entropy(logits_BK, places_B, reduction="none", label_smoothing=smoothing)

    @torch.no_grad()
    def after_step(self) -> None:
        if not self.recipe.ema:
            return
        self.step_1 += 1
        # Stays on the device: .item() would synchronise.
        weight = self.step_1.pow(-2 / 3).clamp(min=1 - self.recipe.ema)[0]
        move(self.mean, self.net, weight)

    def export(self) -> Export:
        return Export(self.mean.state_dict()) if self.recipe.ema else super().export()
