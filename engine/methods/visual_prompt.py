"""Visual prompting: learns a frame of pixels on a frozen model's input (Bahng et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from engine.errors import RecipeError
from engine.recipe import schema
from engine.recipe.schema import MethodRecipe


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    step_passes = 2.0  # the backward pass skips gradients of the backbone's weights
    # width of the frame in pixels for images of 224 pixels; scales with the image size
    frame_at_224: Annotated[int, Meta(ge=1, le=111)] = 30

    def check(self, cell: schema.Recipe) -> None:
        size = cell.model.image_size
        if not 0 < 2 * self.width(size) < size:
            raise RecipeError(
                f"method.frame_at_224={self.frame_at_224}: a frame of {self.width(size)} px does "
                f"not fit an image of {size} px"
            )

    def width(self, image_size: int) -> int:
        """Width of the frame in pixels."""
        return round(self.frame_at_224 * image_size / 224)


import torch
from torch import nn

from engine.methods.base import Context, FrozenBackbone
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
