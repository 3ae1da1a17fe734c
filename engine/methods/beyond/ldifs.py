"""LDIFS: keeps the features of five depths near the pretrained model's (Mukhoti et al. 2024).

    loss_b = CE_b + weight * mean_l mean (f_l / |f_l| - g_l / |g_l|)^2

f_l and g_l are the features of image b at depth l, in the trained and in the pretrained model, and
the inner mean is over all their numbers. The depths are the input of the first block and the
outputs of the blocks at the end of each quarter, which for a ViT-B are those of the authors'
release. Blocks are a ViT's transformer blocks or a convolutional model's residual blocks. As in the
release, norms are over the first dimension after the batch: each channel of a ViT's features is
divided by its norm over the tokens, each position of a convolutional model's by its norm over the
channels.

The release has ViTs alone. The pretrained model runs in each step, since features of all depths are
too large to store. `train.compile` has no effect: a graph would hide the blocks' outputs.

Differs from the authors' code: our campaigns start from the pretrained model and train as FT; the
authors start from a linear probe or the zero-shot head, with AdamW and gradients clipped to a norm
of 1.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from engine.machine.layers import blocks
from engine.methods.base import Context, Trained
from engine.methods.beyond.options.ldifs import Recipe
from loaders.batches import Batch

PARTS = 4  # of the chain of blocks, at whose ends features are compared


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        """Raises ValueError for a network that is not a chain of blocks."""
        super().prepare(net, context)
        before = copy.deepcopy(net).requires_grad_(False).eval()
        self.before = (before,)  # a tuple, so that checkpoints leave the pretrained model out
        self.seen, self.seen_before = _recorded(net), _recorded(before)

    def loss(self, batch: Batch) -> torch.Tensor:
        x, (before,) = self.normalize(batch.images), self.before
        self.seen.clear()
        logits_BC = type(self.net).forward(self.net, x)  # not the compiled `forward`
        self.seen_before.clear()
        with torch.no_grad():
            before(x)
        pairs = zip(self.seen, self.seen_before, strict=True)
        distances_BL = torch.stack([distance(now, then) for now, then in pairs], dim=1)
        losses_B = self._losses(self.grouped(logits_BC), self.targets(batch))
        return losses_B + self.recipe.weight * distances_BL.mean(1)


def distance(now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    """Mean squared difference [b] of normalised features [b, N, ...], with norms over N (fp32)."""
    now, then = (x.float() / (x.float().norm(dim=1, keepdim=True) + 1e-10) for x in (now, then))
    return (now - then).square().flatten(1).mean(1)


def _recorded(net: nn.Module) -> list[torch.Tensor]:
    """The list to which each forward pass adds the features that are compared."""
    names, seen = blocks(net), []
    if not names:
        raise ValueError(
            f"LDIFS compares features after blocks, and {type(net).__name__} is not a chain of "
            "blocks: choose another model or method"
        )
    first = net.get_submodule(names[0])
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for part in sorted({math.ceil(len(names) * (n + 1) / PARTS) for n in range(PARTS)}):
        block = net.get_submodule(names[part - 1])
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    return seen
