"""Visual prompting: learns a frame of pixels on a frozen model's input (Bahng et al. 2022)."""

from __future__ import annotations

import torch
from torch import nn

from engine.methods.base import Context, FrozenBackbone
from engine.methods.options.visual_prompt import Recipe
from engine.store.cells import Export
from loaders.batches import Batch


class Method(FrozenBackbone):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.size = context.recipe.model.image_size
        width = self.recipe.width(self.size)
        frame = torch.ones(self.size, self.size, dtype=torch.bool)
        frame[width:-width, width:-width] = False
        self.places_F = frame.flatten().nonzero().squeeze(1).to(context.device)
        self.prompt = nn.Parameter(torch.randn(3, len(self.places_F)))

    def image_prompt(self) -> torch.Tensor:
        """The prompt [3, H, W]: learned in the frame, zero inside."""
        canvas = self.prompt.new_zeros(3, self.size**2)
        # By indices: the backward pass of a boolean mask synchronises with the GPU.
        return canvas.index_copy(1, self.places_F, self.prompt).unflatten(1, (self.size, self.size))

    def logits(self, batch: Batch) -> torch.Tensor:
        return self.grouped(self.net(self.normalize(batch.images) + self.image_prompt()))

    def export(self) -> Export:
        return Export(self.net.state_dict(), prompt=self.image_prompt().detach())
