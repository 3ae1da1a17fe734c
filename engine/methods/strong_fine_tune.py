"""Fine-tuning with what practice adds to it; with all of it off, it is fine-tuning.

`layer_decay`: a layer's learning rate is this times that of the next, and the head has the whole
rate (Clark et al. 2020; layers are timm's). `ema`: the model is a moving average of the weights,
mean += max(1 - ema, t^(-2/3)) (weights - mean) after step t = 1, 2, ..., as timm's ModelEmaV3 has
it with its warm-up. `label_smoothing`: over the set's classes (Szegedy et al. 2016). `mixup`: each
image is mixed with the one at the opposite place of its batch, by a share that is drawn for the
batch (Zhang et al. 2018; timm pairs them so). `hflip`: images are mirrored.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from engine import models
from engine.machine import ranks
from engine.methods.averages import move
from engine.methods.base import Trained
from engine.methods.context import Context
from engine.models.layers import numbers
from engine.recipe.options import StrongFineTune as Recipe
from engine.store.cells import Export
from loaders.batch import Batch, on_device


class Method(Trained):
    recipe: Recipe
    step_1: torch.Tensor  # optimizer steps so far

    def prepare(self, net: nn.Module, context: Context) -> None:
        """ValueError for draws that differ between ranks, and as `layers.numbers`."""
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
            self.mean = copy.deepcopy(net).requires_grad_(False)  # a module: checkpoints hold it
            # DeepSpeed sends buffers between ranks as bytes, which one of no dimension refuses.
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
        """Over the set's classes [b]."""
        smoothing = self.recipe.label_smoothing
        if not smoothing:
            from kernels.distill import distill_loss  # late, as in `base`

            return distill_loss(logits_BC, None, targets_B, mask=self.mask_C)
        logits_BK = logits_BC[:, self.outputs_K]
        places_B = torch.searchsorted(self.outputs_K, targets_B)
        return F.cross_entropy(logits_BK, places_B, reduction="none", label_smoothing=smoothing)

    @torch.no_grad()
    def after_step(self) -> None:
        if not self.recipe.ema:
            return
        self.step_1 += 1
        # On the device: the host would wait for a number of it.
        weight = self.step_1.pow(-2 / 3).clamp(min=1 - self.recipe.ema)[0]
        move(self.mean, self.net, weight)

    def export(self) -> Export:
        return Export(self.mean.state_dict()) if self.recipe.ema else super().export()
