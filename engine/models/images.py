"""Normalization of images on their device."""

from __future__ import annotations

import torch
from torch import nn

from engine.recipe.preprocessing import data_config
from engine.recipe.schema import ModelRecipe


class Normalize(nn.Module):
    """uint8 pixels [B, 3, H, W] -> float32, (x / 255 - mean) / std, on the pixels' device."""

    def __init__(self, recipe: ModelRecipe, device: torch.device) -> None:
        super().__init__()
        config = data_config(recipe)
        mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
        std = torch.tensor(config["std"]).view(1, 3, 1, 1)
        # mean = 0, std = 1 (MIIL) must give x / 255 exactly, so a multiply-add serves all models.
        self.scale = (1 / (255 * std)).to(device)
        self.shift = (-mean / std).to(device)
        self.memory_format = (
            torch.channels_last if recipe.channels_last else torch.contiguous_format
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.addcmul(self.shift, pixels.to(torch.float32), self.scale)
        return x.contiguous(memory_format=self.memory_format)
