"""Task vectors, for the methods that merge models.

A cell's task vector is its weights minus the pretrained model's weights (Ilharco et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.methods.base import Context, Derived
from engine.store.cells import Cell, Export

Vector = Mapping[str, Tensor]  # fp32, by parameter name


class TaskVectors(Derived):
    """A merge that adds a function of its members' task vectors to the pretrained model.

    Only parameters are merged this way. Floating-point buffers become the mean over the members;
    integer buffers keep the pretrained model's values.
    """

    def members(self, context: Context) -> Sequence[Cell]:
        """The cells to merge: by default, those that the recipe needs."""
        return [context.cell(name) for name in self.recipe.needs]

    def update(self, vectors: Sequence[Vector], net: nn.Module) -> Vector:
        """Return the change to add to each parameter of the pretrained model `net`."""
        raise NotImplementedError

    def make(self, context: Context) -> Export:
        """Merge, on the device. Raises ValueError if a member has an input prompt."""
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
