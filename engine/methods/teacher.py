"""A teacher that is a moving average of the weights that are being trained.

After optimizer step t = 0, 1, ... of T the teacher moves, teacher += share_t (student - teacher).

ema: every T/50 steps by the share 1 - m_t, where m_t rises from 0.05 to 0.9 over the first fifth of
the training (CaRot's release, which moves every 500 steps of some 25,000). beta: at each step, so
that the teacher is the mean of all weights so far, the pre-trained ones among them, weighted by the
density of Beta(1/2, 1/2) at (t + 1/2) / (T + 1): early and late weights count most (TRACER's
release).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from engine.methods.averages import move
from engine.methods.context import Context

MOVES = 50  # of an `ema` teacher in a training
RISE = 0.2  # share of the training in which its momentum rises
MOMENTUM = (0.05, 0.9)


class Teacher(nn.Module):
    """Copies of modules, in eval mode, that follow them; checkpoints hold them.

    average: ema | beta. context: of the method's cell, whose training's steps the shares follow.
    """

    step_1: torch.Tensor  # optimizer steps so far
    shares_T: torch.Tensor

    def __init__(self, students: Sequence[nn.Module], average: str, context: Context) -> None:
        super().__init__()
        steps = context.recipe.train.steps(len(context.target.training(context.recipe)))
        device = context.device
        self.copies = nn.ModuleList(copy.deepcopy(each) for each in students)
        self.copies.requires_grad_(False).eval()
        # DeepSpeed sends buffers between ranks as bytes, which one of no dimension refuses.
        self.register_buffer("step_1", torch.zeros(1, dtype=torch.int64, device=device))
        shares_T = shares(average, steps).to(device)
        self.register_buffer("shares_T", shares_T, persistent=False)

    def train(self, mode: bool = True) -> Teacher:
        super().train(mode)
        self.copies.eval()
        return self

    def follow(self, students: Sequence[nn.Module]) -> None:
        """Move after an optimizer step. students: as at first."""
        share = self.shares_T[self.step_1][0]  # on the device: the host would wait for a number
        self.step_1 += 1
        for mean, student in zip(self.copies, students, strict=True):
            move(mean, student, share)


def shares(average: str, steps: int) -> torch.Tensor:
    """The share [T] of its way to the student that a teacher goes after each step."""
    if average == "beta":
        x_T1 = (torch.arange(steps + 1, dtype=torch.float64) + 0.5) / (steps + 1)
        density_T1 = (x_T1 * (1 - x_T1)).rsqrt()
        return (density_T1 / density_T1.cumsum(0))[1:].float()
    step_T = torch.arange(steps, dtype=torch.float64)
    first, last = MOMENTUM
    momentum_T = first + (last - first) * (step_T / (RISE * steps)).clamp(max=1)
    moves_T = step_T % max(1, steps // MOVES) == 0
    return torch.where(moves_T, 1 - momentum_T, 0.0).float()
