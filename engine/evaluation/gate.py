"""Weights of two models by an image's distance to those that only the second gets right (VRF)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from engine.models.execution import Model


def models(first: Model, second: Model, reference: Mapping[str, torch.Tensor]) -> list[Model]:
    """Both models with their logits divided by their temperatures, and the second model's weight
    [B, 1] before its sigmoid, from its features. reference: of `engine.store.cells.Gated`."""
    failures_MD = reference["failures"]
    neighbour, middle, width = reference["numbers"].tolist()

    def weight(features_BD: torch.Tensor) -> torch.Tensor:
        distance_B1 = squared_distance(features_BD, failures_MD, int(neighbour))
        return (middle - distance_B1) / width

    scaled = [
        Model(each.embed, lambda x_BD, head=each.head, t=t: head(x_BD) / t)
        for each, t in zip((first, second), reference["temperatures"], strict=True)
    ]
    return [*scaled, Model(second.embed, weight)]


def squared_distance(
    features_BD: torch.Tensor, failures_MD: torch.Tensor, neighbour: int
) -> torch.Tensor:
    """[B, 1]: squared distance of each row, as a unit vector, to its `neighbour`th nearest failure
    (from 1); infinite if there is none."""
    if not len(failures_MD):
        return features_BD.new_full((len(features_BD), 1), torch.inf)
    with torch.autocast(features_BD.device.type, enabled=False):
        cosine_BM = F.normalize(features_BD, dim=1) @ failures_MD.T
    return 2 - 2 * cosine_BM.topk(neighbour, dim=1).values[:, -1:]


def averaged(
    first_BC: torch.Tensor, second_BC: torch.Tensor, weight_B1: torch.Tensor
) -> torch.Tensor:
    """The logarithm [B, C] of the average of two models' probabilities, from their logits.

    weight_B1: of the second, before its sigmoid.
    """
    return torch.logaddexp(
        first_BC.log_softmax(1) + F.logsigmoid(-weight_B1),
        second_BC.log_softmax(1) + F.logsigmoid(weight_B1),
    )
