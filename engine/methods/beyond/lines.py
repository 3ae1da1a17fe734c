"""LiNeS: scales fine-tuning's change by depth, least near the input.

Each block l = 1, ..., L of the fine-tuned model becomes

    w = w_pre + (alpha + beta (l - 1) / (L - 1)) (w_ft - w_pre)

(Wang et al. 2025, equation 3). Layers outside the blocks are scaled by alpha, as in the authors'
code. These layers include the head, which the authors do not fine-tune. Blocks are those of timm's
layer-wise learning rates: the transformer blocks of a ViT, or the (inverted) residual blocks of a
convolutional model.

For a single fine-tuned model the authors' code has beta = 1 - alpha and chooses alpha on validation
images of the task and of a control task. The default alpha of 0.5 is our choice.

Differs from the authors' code: the head is fine-tuned and scaled too. alpha is fixed; the authors
choose it on validation images of the task and of a control task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from engine.machine.layers import numbers
from engine.methods.beyond.options.lines import Recipe
from engine.methods.beyond.task_vectors import TaskVectors, Vector


class Method(TaskVectors):
    recipe: Recipe

    def update(self, vectors: Sequence[Vector], net: nn.Module) -> Vector:
        (tuned,) = vectors
        depths = relative_depths(net)
        return {
            name: (self.recipe.alpha + self.recipe.beta * depths[name]) * vector
            for name, vector in tuned.items()
        }


def relative_depths(net: nn.Module) -> dict[str, float]:
    """Depth by parameter name: (l - 1) / (L - 1) in block l, 0 outside the blocks.

    Raises ValueError if timm does not number the model's layers, or it has fewer than 2 blocks.
    """
    layers = numbers(net)
    last = max(layers.values()) - 1  # after the last block comes the head
    if last < 2:
        raise ValueError(f"{type(net).__name__} has {last} blocks; LiNeS needs at least 2")
    depths = dict.fromkeys(layers, 0.0)
    for name, layer in layers.items():
        # timm numbers a norm after the blocks as the last block; only names in blocks have numbers.
        if 1 <= layer <= last and re.search(r"\.\d+\.", name):
            depths[name] = (layer - 1) / (last - 1)
    return depths
