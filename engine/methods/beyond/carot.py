"""CaRot: FLYP with self-distillation and an orthogonality penalty on the image projection.

CaRot adds to FLYP's loss (Oh et al. 2024), as the authors' script for ImageNet does,

    weight * (H(softmax(S'), softmax(S)) + H(softmax(S'^T), softmax(S^T)))
    + orthogonality * |P^T P - I| + product * |P Q^T|

S holds the batch's image-text similarities and S' those of a moving-average teacher. H is the
cross-entropy of each row. P [D, E] and Q [F, E] project the features of images and of captions into
the embedding, and norms are Frobenius'. The script sets the weights to 1.5, 0.2 and 0.05. The
teacher averages both towers and the scale.

Differs from the authors' code: captions are drawn as FLYP's are here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine import models
from engine.methods.base import Context
from engine.methods.beyond import flyp
from engine.methods.beyond.options.carot import Recipe
from engine.methods.beyond.teacher import Teacher
from engine.models import clip
from loaders.batches import Batch


class Method(flyp.Method):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        """Raises ValueError as FLYP does, and for a tower without a projection matrix."""
        super().prepare(net, context)
        if not isinstance(self.text.text_projection, torch.Tensor):
            raise ValueError(
                f"{self.recipe.title} penalises the product of the towers' projections, and this "
                "text tower has no projection matrix: choose a CLIP ViT, or another method"
            )
        self.teacher = Teacher(self.students(), self.recipe.average, context)
        self.projection_DE = clip.projection(net)

    def students(self) -> list[nn.Module]:
        """The modules that the teacher averages."""
        return [self.net, self.text, nn.ParameterList([self.log_scale_1])]

    def loss(self, batch: Batch) -> torch.Tensor:
        pairs = self.pairs(batch)
        logits_BB = flyp.similarities(self.net, self.text, self.log_scale_1, *pairs)
        copies: Any = self.teacher.copies  # a ModuleList loses the types of its members
        net, text, (log_scale_1,) = copies
        with torch.no_grad():
            teacher_BB = flyp.similarities(net, text, log_scale_1, *pairs)
        distance_B = cross_entropy(teacher_BB, logits_BB) + cross_entropy(teacher_BB.T, logits_BB.T)
        losses_B = flyp.contrastive(logits_BB) + self.recipe.weight * distance_B
        return losses_B + self.projection_terms()

    def projection_terms(self) -> torch.Tensor:
        """Both penalties of the projections, a scalar in fp32."""
        skewness = skew(self.projection_DE)
        product_DF = models.logits(self.projection_DE, self.text.text_projection, None)
        return self.recipe.orthogonality * skewness + self.recipe.product * product_DF.norm()

    def after_step(self) -> None:
        self.teacher.follow(self.students())


def cross_entropy(target_BC: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [b] of each row's softmax(logits) relative to softmax(target)."""
    return -(target_BC.softmax(1) * logits_BC.log_softmax(1)).sum(1)


def skew(projection_DE: torch.Tensor) -> torch.Tensor:
    """Deviation of the columns from orthonormality, |P^T P - I| (Frobenius norm, fp32)."""
    with torch.autocast(projection_DE.device.type, enabled=False):
        gram_EE = projection_DE.T @ projection_DE
    return (gram_EE - torch.eye(len(gram_EE), device=gram_EE.device)).norm()
