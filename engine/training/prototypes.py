"""Heads of class prototypes: the mean direction of each class's features (Snell et al. 2017).

As CLIP does with the text features of a class (Radford et al. 2021, 3.1.2): features are brought to
unit length, averaged over a class's images, and the mean is brought to unit length again. A
feature of norm r at an angle a to a class's prototype gets the logit

    scale * cos(a) * r / mean r,

the mean taken over the training images, since a linear head cannot bring features to unit length.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from engine.errors import DivergedError
from engine.methods.objectives import Prototypes

_CHUNK = 8192  # images whose features are in memory together, in float64


def fit(head: nn.Linear, problem: Prototypes, label: str) -> dict[str, float]:
    """Make a head of prototypes, in place, without a bias; the same result on every rank.

    Returns the number of images and the mean norm of their features. Raises DivergedError, naming
    `label`, where features are not finite or all zero.
    """
    labels_N = problem.labels_N.cpu()
    sums_CD = torch.zeros(head.weight.shape, dtype=torch.float64)
    norms = 0.0
    for rows in problem.rows_n.split(_CHUNK):
        features_bD = problem.features_ND[rows].double()
        sums_CD.index_add_(0, labels_N[rows], F.normalize(features_bD, dim=1))
        norms += features_bD.norm(dim=1).sum().item()
    norm = norms / len(problem.rows_n)
    if not (math.isfinite(norm) and norm > 0):
        raise DivergedError(
            f"{label}: the mean norm of the features is {norm}; check that the backbone's weights "
            "are finite and not all zero"
        )
    with torch.no_grad():
        head.weight.copy_(F.normalize(sums_CD, dim=1) * (problem.scale / norm))
        head.bias.zero_()
    return {"images": len(problem.rows_n), "norm": norm}
