"""A teacher whose weights are a moving average of the student's.

After optimizer step t = 0, 1, ..., T - 1, teacher += share_t (student - teacher).

- `ema`: every T/50 steps, share_t = 1 - m_t, where m_t rises from 0.05 to 0.9 over the first fifth
  of training. CaRot's release updates every 500 of some 25,000 steps.
- `beta`: the teacher is a weighted mean of all weights so far, including the pretrained ones. The
  weights after n steps count in proportion to the density of Beta(1/2, 1/2) at
  (n + 1/2) / (T + 1), so early and late weights count most (TRACER's release).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from engine.machine.compat import LISTS
from engine.methods.base import Context
from engine.models.execution import compile_in_place

MOVES = 50  # updates of an `ema` teacher in one training
RISE = 0.2  # fraction of the training in which its momentum rises
MOMENTUM = (0.05, 0.9)


class Teacher(nn.Module):
    """Moving averages of modules, in eval mode. Checkpoints include them.

    students: the network, whose copy is compiled as the network will be, and others. average: "ema"
    or "beta". context: gives the number of training steps and the device.
    """

    step_1: torch.Tensor  # optimizer steps so far
    shares_T: torch.Tensor

    def __init__(self, students: Sequence[nn.Module], average: str, context: Context) -> None:
        super().__init__()
        steps = context.recipe.train.steps(len(context.target.training(context.recipe)))
        device = context.device
        self.copies = nn.ModuleList(copy.deepcopy(each) for each in students)
        self.copies.requires_grad_(False).eval()
        compile_in_place(self.copies[0], context.recipe.train.compile, device)
        # DeepSpeed broadcasts buffers as bytes, and a 0-d tensor cannot be viewed as bytes.
        self.register_buffer("step_1", torch.zeros(1, dtype=torch.int64, device=device))
        shares_T = shares(average, steps).to(device)
        self.register_buffer("shares_T", shares_T, persistent=False)

    def train(self, mode: bool = True) -> Teacher:
        super().train(mode)
        self.copies.eval()
        return self

    def follow(self, students: Sequence[nn.Module]) -> None:
        """Update after an optimizer step. students: the modules passed to `__init__`, in order."""
        share = self.shares_T[self.step_1][0]  # stays on the device: .item() would synchronise
        self.step_1 += 1
        for mean, student in zip(self.copies, students, strict=True):
            move(mean, student, share)


def shares(average: str, steps: int) -> torch.Tensor:
    """share_t [T] (float32) of a training of `steps` steps."""
    if average == "beta":
        x_T1 = (torch.arange(steps + 1, dtype=torch.float64) + 0.5) / (steps + 1)
        density_T1 = (x_T1 * (1 - x_T1)).rsqrt()
        return (density_T1 / density_T1.cumsum(0))[1:].float()
    step_T = torch.arange(steps, dtype=torch.float64)
    first, last = MOMENTUM
    momentum_T = first + (last - first) * (step_T / (RISE * steps)).clamp(max=1)
    moves_T = step_T % max(1, steps // MOVES) == 0
    return torch.where(moves_T, 1 - momentum_T, 0.0).float()


@torch.no_grad()
def move(mean: nn.Module, student: nn.Module, share: torch.Tensor) -> None:
    """Update parameters and floating-point buffers in place: mean += share (student - mean).

    Integer buffers are copied. share: a zero-dimensional tensor on the same device.
    """
    now, means = student.state_dict(), mean.state_dict()
    floating = [name for name, tensor in means.items() if tensor.is_floating_point()]
    changes = LISTS._foreach_sub([now[n] for n in floating], [means[n] for n in floating])
    LISTS._foreach_mul_(changes, share)
    LISTS._foreach_add_([means[n] for n in floating], changes)
    for name in means.keys() - set(floating):  # batch norm's `num_batches_tracked`
        means[name].copy_(now[name])
