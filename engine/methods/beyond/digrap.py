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
matrices only, whose learning rate of omega is the default). We read neither the paper's text beyond
the algorithm nor its release. The projection includes the head, since the pretrained head already
covers the classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.methods.beyond.ftp import NumberPerTensor, rows
from engine.methods.beyond.options.digrap import Recipe


class Method(NumberPerTensor):
    """The numbers are the omegas, and `last` has each tensor's p of the last step."""

    recipe: Recipe

    @torch.no_grad()
    def before_step(self) -> None:
        slopes, products = [], []
        for theta, anchor, part in zip(self.thetas, self.anchors, self.last, strict=True):
            if theta.grad is None:
                theta.grad = torch.zeros_like(theta)
            slopes.append((F.normalize(rows(theta.grad)) * F.normalize(rows(part))).sum())
            offset = theta - anchor
            products.append((theta.grad * offset).sum())
            squares = offset.square().sum().clamp(min=torch.finfo(offset.dtype).tiny)
            part.copy_(products[-1] / squares * offset)
        self.move(torch.stack(slopes), self.recipe.rate)
        self.numbers_T.clamp_(0, 1)
        removed_T = torch.where(torch.stack(products) < 0, self.numbers_T, 0.0)
        for theta, part, removed in zip(self.thetas, self.last, removed_T, strict=True):
            assert theta.grad is not None
            theta.grad -= removed * part
