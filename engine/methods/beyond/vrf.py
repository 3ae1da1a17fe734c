"""VRF: weighs the fine-tuned model by an image's distance to the pretrained model's failures.

The failures V are the training images that FT classifies correctly and the pretrained model does
not. The ensemble is (Zhu et al. 2024)

    p = (1 - w) p_pre + w p_FT,  w = sigmoid((middle - d) / width)

d is the squared distance from an image's features to the K-th nearest of V. Features come from FT's
backbone and have unit length. The release sets middle to 1.5 and width to 0.6.

K is our choice, 1000 |V| / 1,281,167, at least 1: the release's share of V on ImageNet. The release
computes K as 1000 |V| / N for N training images, which would exceed |V| for N below 1,000.

Each model's probabilities p are calibrated: at its temperature, the mean confidence on the held-out
images equals the accuracy. Without held-out images the temperature is 1. VRF trains nothing, but
needs one pass over the training images for their features.

Differs from the authors' code: K is a share of the failures, not of the training images. Without
held-out images nothing is calibrated.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from scipy import optimize

from engine import models
from engine.data import masks
from engine.methods.base import Context, Derived
from engine.methods.beyond.options.vrf import Recipe
from engine.store.cells import Cell, Gated

log = logging.getLogger(__name__)
IMAGENET = 1_281_167  # training images; K is 1000 / IMAGENET of the failures
TEMPERATURES = (0.1, 10.0)  # the range of the search
ROWS = 4096  # rows of logits computed at a time


class Method(Derived):
    recipe: Recipe

    def make(self, context: Context) -> Gated:
        members = context.base, context.cell("fine_tune")
        train, holdout = context.target.training(context.recipe), context.target.holdout
        before_N, after_N = (_right(context, cell, train) for cell in members)
        failures = train[(after_N & ~before_N).numpy()]
        if not len(failures):
            log.warning(
                "%s: fine-tuning on %s corrects none of the pretrained model's errors on the "
                "training images, so predictions are the pretrained model's",
                self.recipe.title,
                context.target.name,
            )
        features_MD = context.features(members[1], context.target)[failures]
        return Gated(
            (members[0].name, members[1].name),
            F.normalize(features_MD, dim=1),
            torch.tensor([_temperature(context, cell, holdout) for cell in members]),
            max(1, round(1000 * len(failures) / IMAGENET)),
            self.recipe.middle,
            self.recipe.width,
        )


def _logits(context: Context, cell: Cell, index: np.ndarray) -> torch.Tensor:
    """Logits [n, C] of downstream images; -inf for classes that the dataset lacks."""
    target = context.target
    weight, bias = cell.tensors(*models.head_names(context.recipe.model))
    features_ND = context.features(cell, target)
    logits = [
        models.logits(features_ND[index[start : start + ROWS]], weight, bias)
        for start in range(0, len(index), ROWS)
    ]
    logits_NC = masks.grouped(torch.cat(logits), target.members, target.class_reduction)
    return logits_NC if target.mask is None else logits_NC.masked_fill(~target.mask, -torch.inf)


def _right(context: Context, cell: Cell, index: np.ndarray) -> torch.Tensor:
    """Whether a cell classifies each image correctly, [n] (bool)."""
    return _logits(context, cell, index).argmax(dim=1) == context.target.labels[index]


def _temperature(context: Context, cell: Cell, holdout: np.ndarray) -> float:
    """The temperature at which the mean confidence equals the accuracy; 1 without images."""
    if not len(holdout):
        return 1.0
    logits_NC = _logits(context, cell, holdout).double()
    accuracy = (logits_NC.argmax(dim=1) == context.target.labels[holdout]).double().mean().item()

    def excess(temperature: float) -> float:
        return (logits_NC / temperature).softmax(dim=1).amax(dim=1).mean().item() - accuracy

    low, high = TEMPERATURES
    if excess(low) <= 0 or excess(high) >= 0:  # no root within the range
        return low if excess(low) <= 0 else high
    return optimize.root_scalar(excess, bracket=(low, high), xtol=1e-4).root
