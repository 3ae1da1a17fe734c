"""Task vectors: what training changed, for the methods that merge models.

The task vector of a cell is its weights minus those of the pre-trained model (Ilharco et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.methods.base import Derived
from engine.methods.context import Context
from engine.store.cells import Cell, Export

Vector = Mapping[str, Tensor]  # fp32, by parameter name


class TaskVectors(Derived):
    """A merge that adds a function of its members' task vectors to the pre-trained model.

    It covers parameters. Floating buffers become the mean over the members; integer buffers keep
    the pre-trained model's values.
    """

    def members(self, context: Context) -> Sequence[Cell]:
        """The cells to merge: those that the recipe needs."""
        return [context.cell(name) for name in self.recipe.needs]

    def update(self, vectors: Sequence[Vector], net: nn.Module) -> Vector:
        """The change of each parameter of the pretrained model `net`, from the task vectors."""
        raise NotImplementedError

    def make(self, context: Context) -> Export:
        """The merged model, on the device. ValueError for a member with an input prompt."""
        net = context.network(context.base)
        before = net.state_dict()
        parameters = [name for name, _ in net.named_parameters()]
        states = []
        for cell in self.members(context):
            if cell.prompt() is not None:
                raise ValueError(f"{cell.name} has an input prompt and cannot be merged")
            states.append({k: t.to(context.device) for k, t in cell.state().items()})
        vectors = [{name: state[name] - before[name] for name in parameters} for state in states]
        update = self.update(vectors, net)
        merged = {name: before[name] + update[name] for name in parameters}
        for name, tensor in before.items():
            if name not in merged and tensor.is_floating_point():
                merged[name] = torch.stack([state[name] for state in states]).mean(0)
        return Export(before | merged)
