"""How much of an optimizer's tensors a rank keeps with `train.zero`."""

import weakref

import torch
from torch import nn

from engine.methods.base import Penalty
from engine.recipe.schema import OptimizerRecipe
from engine.training import optim


def part_of_rank() -> float:
    """This rank's part of all moments, anchors and Fisher of AdamW with a penalty."""
    named = {str(n): nn.Parameter(torch.ones(100 + n)) for n in range(20)}
    penalty = Penalty(0.5, named, named)
    optimizer = optim.build(named, OptimizerRecipe(name="adamw"), penalty, zero=1)
    whole = weakref.ref(penalty)
    del penalty
    assert whole() is None, "a rank keeps the whole penalty"
    for theta in named.values():
        theta.grad = torch.ones_like(theta)
    optimizer.step()
    part = optim.own(optimizer)
    assert isinstance(part, optim.Penalised) and part._fishers is not None
    tensors = [*part._anchors.values(), *part._fishers.values()]
    for state in part.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
    return sum(t.numel() for t in tensors) / (4 * sum(t.numel() for t in named.values()))
