"""CaRot: FLYP with a moving-average teacher, and an image projection that is kept orthogonal.

To FLYP's loss over the pairs of a batch it adds, with the similarities S of images to sentences
and those S' of the teacher,

    weight * (H(softmax(S'), softmax(S)) + H(softmax(S'^T), softmax(S^T)))
    + orthogonality * |P^T P - I|

where H is the cross-entropy of each row and P [D, E] the projection of images into the embedding
(Oh et al. 2024; their release gives the weights 1.5 and 0.2). The teacher holds both towers and the
scale. The release's script has a third term, 0.05 times the norm of the product of both
projections, which is left out here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.methods import flyp
from engine.methods.context import Context
from engine.methods.teacher import Teacher
from engine.models import clip
from engine.recipe.options import CaRot as Recipe
from loaders.batch import Batch


class Method(flyp.Method):
    recipe: Recipe

    @property
    def passes(self) -> float:
        return super().passes + 1.0  # the teacher's

    def prepare(self, net: nn.Module, context: Context) -> None:
        """ValueError as of FLYP, and for a tower without a projection."""
        super().prepare(net, context)
        self.teacher = Teacher(self.students(), self.recipe.average, context)
        self.projection_DE = clip.projection(net)

    def students(self) -> list[nn.Module]:
        """The parameters that the teacher averages."""
        return [self.net, self.text, nn.ParameterList([self.log_scale_1])]

    def loss(self, batch: Batch) -> torch.Tensor:
        pairs = self.pairs(batch)
        logits_BB = flyp.similarities(self.net, self.text, self.log_scale_1, *pairs)
        copies: Any = self.teacher.copies  # whose types torch does not know
        net, text, (log_scale_1,) = copies
        with torch.no_grad():
            teacher_BB = flyp.similarities(net, text, log_scale_1, *pairs)
        distance_B = cross_entropy(teacher_BB, logits_BB) + cross_entropy(teacher_BB.T, logits_BB.T)
        losses_B = flyp.contrastive(logits_BB) + self.recipe.weight * distance_B
        return losses_B + self.recipe.orthogonality * skew(self.projection_DE)

    def after_step(self) -> None:
        self.teacher.follow(self.students())


def cross_entropy(target_BC: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
    """Of each row of logits [b] to the probabilities that the target's logits give."""
    return -(target_BC.softmax(1) * logits_BC.log_softmax(1)).sum(1)


def skew(projection_DE: torch.Tensor) -> torch.Tensor:
    """How far the columns are from orthonormal: |P^T P - I|, in fp32."""
    with torch.autocast(projection_DE.device.type, enabled=False):
        gram_EE = projection_DE.T @ projection_DE
    return (gram_EE - torch.eye(len(gram_EE), device=gram_EE.device)).norm()
