"""TIES merging and task arithmetic: add task vectors to the pretrained model.

Task arithmetic adds scale * sum_i v_i (Ilharco et al. 2023). TIES (Yadav et al. 2023, algorithm 1)
has three steps:

1. Trim: keep the fraction `density` of each task vector, its entries of largest magnitude.
2. Elect: for each parameter, take the sign of the sum of the trimmed vectors.
3. Merge: add scale times the mean of the trimmed entries with that sign.

`density=1.0 elect=false` is task arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.methods.beyond.options.ties import Recipe
from engine.methods.beyond.task_vectors import TaskVectors, Vector


class Method(TaskVectors):
    recipe: Recipe

    def update(self, vectors: Sequence[Vector], net: nn.Module) -> Vector:
        flat_NP = torch.stack([torch.cat([t.flatten() for t in v.values()]) for v in vectors])
        if self.recipe.density < 1:
            flat_NP = torch.stack([trimmed(vector, self.recipe.density) for vector in flat_NP])
        total_P = elected_mean(flat_NP) if self.recipe.elect else flat_NP.sum(0)
        parts = (self.recipe.scale * total_P).split([v.numel() for v in vectors[0].values()])
        return {
            name: part.view_as(vector)
            for (name, vector), part in zip(vectors[0].items(), parts, strict=True)
        }


def trimmed(vector_P: Tensor, density: float) -> Tensor:
    """Keep the round(density P) entries of largest magnitude of a vector [P], and set others to 0.

    Keeps at least one entry, and all entries that tie with the smallest kept one.
    """
    magnitude_P = vector_P.abs()
    count = max(1, round(density * len(vector_P)))
    threshold = magnitude_P.topk(count, sorted=False).values.min()
    return torch.where(magnitude_P >= threshold, vector_P, 0.0)


def elected_mean(vectors_NP: Tensor) -> Tensor:
    """For each entry, the mean [P] over the vectors that have the sign of the vectors' sum.

    Zeros do not count. If the sum is 0, the mean is 0.
    """
    sign_P = vectors_NP.sum(0).sign()
    agreeing_NP = torch.where(vectors_NP.sign() == sign_P, vectors_NP, 0.0)
    return agreeing_NP.sum(0) / (agreeing_NP != 0).sum(0).clamp(min=1)
