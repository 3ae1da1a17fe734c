"""FTP: keeps each tensor within a learned radius of its pretrained value.

Fast trainable projection (Tian et al. 2023, algorithm 1, and the authors' release). After the
optimizer's step to theta', each row r of the offset c = theta' - theta_pre is projected:

    theta_r = theta_pre_r + clamp(radius / |c_r|_1, 0, 1) c_r

A row holds the weights of one output; a vector is a single row. Before the next step, Adam updates
the radius by its gradient, sum_r g_r . c_r / |c_r|_1, with the release's learning rate of 0.01. The
radius starts at 1e-8, so the first step changes almost nothing. It grows by about 0.01 per step,
whatever the optimizer's rate, so short trainings stay near theta_pre. It is at most the largest
|c_r|_1.
The head is constrained too, since the pretrained head already covers the classes. The release does
not constrain a new head.

Differs from the authors' code: the head is constrained too.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from engine.methods.base import Context, Trained
from engine.methods.beyond.options.ftp import Recipe

RATE, BETAS, EPS = 1e-2, (0.9, 0.999), 1e-8


class NumberPerTensor(Trained):
    """A method that learns one number per parameter tensor, by Adam.

    Checkpoints include the numbers, Adam's moments and `last`, a tensor like each parameter that
    the method keeps from one step to the next; all start at 0.
    """

    numbers_T: torch.Tensor
    first_T: torch.Tensor
    second_T: torch.Tensor
    step_1: torch.Tensor

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        learning = [name for name, p in net.named_parameters() if p.requires_grad]
        self.thetas = [net.get_parameter(name) for name in learning]
        self.anchors = [theta.detach().clone() for theta in self.thetas]
        self.kept = copy.deepcopy(net).requires_grad_(False)  # a module, so checkpoints include it
        self.last = [self.kept.get_parameter(name).zero_() for name in learning]
        for name in ("numbers_T", "first_T", "second_T"):
            self.register_buffer(name, torch.zeros(len(learning), device=context.device))
        self.register_buffer("step_1", torch.zeros(1, device=context.device))

    def move(self, gradient_T: torch.Tensor, rate: float) -> None:
        """Step the numbers in place, down their gradient (float32)."""
        self.step_1 += 1
        self.first_T.lerp_(gradient_T, 1 - BETAS[0])
        self.second_T.lerp_(gradient_T.square(), 1 - BETAS[1])
        first_T, second_T = (
            moment_T / (1 - beta**self.step_1)
            for moment_T, beta in zip((self.first_T, self.second_T), BETAS, strict=True)
        )
        self.numbers_T -= rate * first_T / (second_T.sqrt() + EPS)


class Method(NumberPerTensor):
    """The numbers are the radii, and `last` has the offsets before projection."""

    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        self.numbers_T.fill_(EPS)

    @torch.no_grad()
    def before_step(self) -> None:
        gradients = []
        for theta, offset in zip(self.thetas, self.last, strict=True):
            grad = torch.zeros_like(theta) if theta.grad is None else theta.grad
            along_R = (rows(grad) * rows(offset)).sum(1) / lengths(offset)
            gradients.append(along_R.sum())
        gradient_T = torch.stack(gradients)
        # A positive gradient shrinks the radius.
        gradient_T = torch.where(gradient_T > 0, self.recipe.annealing * gradient_T, gradient_T)
        self.move(gradient_T, RATE)

    @torch.no_grad()
    def after_step(self) -> None:
        for place, (theta, anchor) in enumerate(zip(self.thetas, self.anchors, strict=True)):
            offset = torch.sub(theta, anchor, out=self.last[place])
            lengths_R = lengths(offset)
            radius = self.numbers_T[place]
            radius.copy_(torch.minimum(radius.clamp(min=EPS), lengths_R.max()))
            shares_R = (radius / lengths_R).clamp(max=1)
            theta.copy_(anchor + (rows(offset) * shares_R[:, None]).reshape(theta.shape))


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """Reshape a parameter [out, ...] to [out, in], and a vector to one row."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)


def lengths(tensor: torch.Tensor) -> torch.Tensor:
    """The L1 norm [out] of each row, plus EPS."""
    return rows(tensor).abs().sum(1) + EPS
