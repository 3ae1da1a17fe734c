"""Model Stock: interpolates between the pretrained model and the mean of a few fine-tuned models.

For each tensor,

    w = t mean_i(w_i) + (1 - t) w_pre,  t = N c / (1 + (N - 1) c)

where N is the number of members and c the mean cosine of all pairs of offsets w_i - w_pre (Jang et
al. 2024, equation 4). The more the members differ, the closer w is to the pretrained model. Of all
points between the members' mean and w_pre, w is nearest to the centre of the distribution of
fine-tuned models. Members are the methods in `members`, each trained with `seeds` seeds. A negative
c counts as 0, which leaves the tensor at its pretrained value.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.methods.base import Context
from engine.methods.beyond.options.model_stock import Recipe
from engine.methods.beyond.task_vectors import TaskVectors, Vector
from engine.store.cells import Cell


class Method(TaskVectors):
    recipe: Recipe

    def members(self, context: Context) -> Sequence[Cell]:
        names, seeds = self.recipe.members, self.recipe.member_seeds(context.recipe.seed)
        # The first seed last: another job may be training it.
        cells = {(n, seed): context.cell(n, seed=seed) for seed in reversed(seeds) for n in names}
        return [cells[name, seed] for name in names for seed in seeds]

    def update(self, vectors: Sequence[Vector], net: nn.Module) -> Vector:
        return {name: stocked([vector[name] for vector in vectors]) for name in vectors[0]}


def stocked(offsets: Sequence[Tensor]) -> Tensor:
    """t mean_i(d_i) of N >= 2 offsets d_i of a tensor; 0 if all offsets are 0."""
    flat_NP = torch.stack([offset.flatten() for offset in offsets])
    unit_NP = nn.functional.normalize(flat_NP, dim=1)  # a zero offset stays 0, so its cosines are 0
    cosines = [a @ b for a, b in itertools.combinations(unit_NP, 2)]
    cosine = torch.stack(cosines).mean().clamp(min=0)
    count = len(offsets)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return (ratio * flat_NP.mean(0)).view_as(offsets[0])
