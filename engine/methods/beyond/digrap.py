"""DiGraP: removes a learned share of the part of a gradient that leads away from the pretrained
weights.

Directional gradient projection (Huang et al. 2025, algorithm 1) acts on each parameter tensor with
gradient g and offset d = theta - theta_pre. p = (g . d / |d|^2) d is the part of g along d. If
g . d < 0, so that gradient descent leads away from theta_pre, the optimizer gets

    g - omega p

in place of g. omega is 0 at first and always in [0, 1]. Before each step, Adam moves omega down its
gradient, sum_r (g_r / |g_r|) . (p'_r / |p'_r|), where p' is the p of the step before and a row r
holds the weights of one output; a vector is a single row.

The paper's algorithm names a normalisation of omega's gradient and does not show it. The sum over
normalised rows is that of the authors' earlier code (SPCG in chengyuehuang511/vlm_robustness, for
matrices only, whose learning rate of omega is the default). The projection includes the head, since
the pretrained head already covers the classes.

Differs from the authors' code: not known; neither their release nor the paper's text beyond the
algorithm was read.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from engine.methods.base import Context, Trained
from engine.methods.beyond.options.digrap import Recipe

BETAS, EPS = (0.9, 0.999), 1e-8  # of omega's Adam


class Method(Trained):
    """Checkpoints include omega and Adam's moments per parameter tensor, and the part of each
    tensor's last gradient along its offset; all start at 0."""

    recipe: Recipe
    omega_T: torch.Tensor
    first_T: torch.Tensor
    second_T: torch.Tensor
    step_1: torch.Tensor

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        learning = [name for name, p in net.named_parameters() if p.requires_grad]
        self.thetas = [net.get_parameter(name) for name in learning]
        self.anchors = [theta.detach().clone() for theta in self.thetas]
        self.kept = copy.deepcopy(net).requires_grad_(False)  # a module, so checkpoints include it
        self.parts = [self.kept.get_parameter(name).zero_() for name in learning]
        for name in ("omega_T", "first_T", "second_T"):
            self.register_buffer(name, torch.zeros(len(learning), device=context.device))
        self.register_buffer("step_1", torch.zeros(1, device=context.device))

    @torch.no_grad()
    def before_step(self) -> None:
        slopes, products = [], []
        for theta, anchor, part in zip(self.thetas, self.anchors, self.parts, strict=True):
            if theta.grad is None:
                theta.grad = torch.zeros_like(theta)
            slopes.append((F.normalize(rows(theta.grad)) * F.normalize(rows(part))).sum())
            offset = theta - anchor
            products.append((theta.grad * offset).sum())
            squares = offset.square().sum().clamp(min=torch.finfo(offset.dtype).tiny)
            part.copy_(products[-1] / squares * offset)
        self._move_omega(torch.stack(slopes))
        removed_T = torch.where(torch.stack(products) < 0, self.omega_T, 0.0)
        for theta, part, removed in zip(self.thetas, self.parts, removed_T, strict=True):
            assert theta.grad is not None
            theta.grad -= removed * part

    def _move_omega(self, slope_T: torch.Tensor) -> None:
        """Step omega down its gradient (float32), within [0, 1]."""
        self.step_1 += 1
        self.first_T.lerp_(slope_T, 1 - BETAS[0])
        self.second_T.lerp_(slope_T.square(), 1 - BETAS[1])
        first_T, second_T = (
            moment_T / (1 - beta**self.step_1)
            for moment_T, beta in zip((self.first_T, self.second_T), BETAS, strict=True)
        )
        self.omega_T -= self.recipe.rate * first_T / (second_T.sqrt() + EPS)
        self.omega_T.clamp_(0, 1)


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """Reshape a parameter [out, ...] to [out, in], and a vector to one row."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)
