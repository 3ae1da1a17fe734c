"""DoRA: LoRA changes the direction of a weight's rows; their norms are trained separately.

With V = W + scale * B A, row i of the adapted weight is m_i V_i / ||V_i|| (Liu et al. 2024,
equation 5). m starts at the row norms of W, so training starts from the pretrained model. No
gradient passes through ||V_i|| (their section 4.3). The adapted layers, rank and scale are LoRA's.
A row holds the weights of one output, as in the authors' release and in PEFT.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.methods import lora
from engine.methods.beyond.options.dora import Recipe


class Directions(lora.LowRank):
    """Maps W [out, in, ...] to W + scale * B A with row norms `magnitude`."""

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, thirds: bool) -> None:
        super().__init__(weight, rank, scale, thirds)
        self.magnitude = nn.Parameter(self.spread(lengths(weight.detach()).split(self.rows)))

    def spread(self, blocks: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Stack the adapted blocks as [blocks, rows]: all of them, or the first and last third."""
        return torch.stack([blocks[0], blocks[-1]][: self.blocks])

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        moved = super().forward(weight)
        shares = self.magnitude / self.spread(lengths(moved.detach()).split(self.rows))
        if self.blocks == 2:
            shares = torch.stack([shares[0], torch.ones_like(shares[0]), shares[1]])
        return moved * shares.reshape(-1, *[1] * (weight.dim() - 1))


def lengths(weight: torch.Tensor) -> torch.Tensor:
    """Euclidean norms [out] of the rows of a weight [out, in, ...], clamped above 0."""
    return weight.flatten(1).norm(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)


class Method(lora.Method):
    recipe: Recipe
    factors = Directions
