"""Model Stock: a few fine-tuned models, moved towards the pre-trained model as far as they differ.

For each tensor, with the members' offsets d_i = w_i - w_pre and the mean cosine c of their pairs,

    w = t mean_i(w_i) + (1 - t) w_pre,  t = N c / (1 + (N - 1) c)

for N members (Jang et al. 2024, equation 4): the point between centre and pre-trained model that is
nearest to the centre of all fine-tuned models. Members are the methods of `members`, each trained
with `seeds` seeds. A cosine below 0 counts as 0, which leaves the tensor as it was pre-trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.methods.context import Context
from engine.methods.task_vectors import TaskVectors, Vector
from engine.recipe.options import ModelStock as Recipe
from engine.store.cells import Cell

# Between two seeds of a member. A campaign has at most this number of seeds (`schema.Thousand`) and
# consecutive, so no model is a member of the stocks of two of them, and intervals over seeds see
# independent stocks.
APART = 1000


class Method(TaskVectors):
    recipe: Recipe

    def members(self, context: Context) -> Sequence[Cell]:
        first = context.recipe.seed
        seeds = [first + APART * number for number in range(self.recipe.seeds)]
        return [context.cell(name, seed=seed) for name in self.recipe.members for seed in seeds]

    def update(self, vectors: Sequence[Vector], net: nn.Module) -> Vector:
        return {name: stocked([vector[name] for vector in vectors]) for name in vectors[0]}


def stocked(offsets: Sequence[Tensor]) -> Tensor:
    """t mean_i(d_i) of N >= 2 offsets d_i of a tensor; 0 where all of them are 0."""
    flat_NP = torch.stack([offset.flatten() for offset in offsets])
    unit_NP = nn.functional.normalize(flat_NP, dim=1)  # a zero stays zero: its cosines are 0
    cosines = [a @ b for a, b in itertools.combinations(unit_NP, 2)]
    cosine = torch.stack(cosines).mean().clamp(min=0)
    count = len(offsets)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return (ratio * flat_NP.mean(0)).view_as(offsets[0])
