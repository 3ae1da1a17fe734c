"""FLOW: weighs each image's loss by how well the pretrained model already predicts it.

    loss_b = exp(-l_b / tau) CE_b

l_b is the pretrained model's cross-entropy on image b, and tau is the median of l over the training
images (Sanyal et al. 2025). The easier an image is for the pretrained model, the more it counts, so
fine-tuning moves less. Weights are not normalised, as in the authors' release: the median weight is
1/e, so SGD's steps are smaller than FT's at the same learning rate.

The release trains a new head first and takes l from that model; afterwards it trains the head once
more, alone and without weights. Here l comes from the pretrained model, whose head knows the
classes, and no second training follows.

Differs from the authors' code: the head is the pretrained one and trains once; the authors train a
new head first, and alone at the end.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from engine import models
from engine.methods.base import Context, Trained
from engine.methods.beyond.options.flow import Recipe
from loaders.batches import Batch, on_device

ROWS = 4096  # rows of logits computed at a time


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        index = context.target.training(context.recipe)
        features_ND = context.features(context.base, context.target, training=True)
        head = models.head(net)
        losses_N = torch.zeros(len(self.targets_N), device=context.device)
        for part in torch.from_numpy(index).split(ROWS):
            rows = on_device(part, context.device)
            with torch.no_grad():
                logits_RC = self.grouped(head(on_device(features_ND[part], context.device)))
            losses_N[rows] = self._losses(logits_RC, self.targets_N[rows])
        # NumPy's median, since torch's is the lower of the two middle losses.
        tau = max(np.median(losses_N.cpu()[index]), torch.finfo(torch.float32).tiny)
        self.weights_N = (-losses_N / tau).exp()

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.weights_N[batch.rows] * super().loss(batch)
