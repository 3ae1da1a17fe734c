"""Reduce logits of a model or ensemble to stored predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from engine.data import masks
from engine.data.sets import LabelledSet
from engine.measures import predictions
from engine.measures.predictions import TEMPERATURES
from engine.models.execution import Model
from loaders.batches import on_device


class Reduction:
    """Reduces the logits [B, C] of models to predictions, float32 [B, 4] or [B, 4 + T], on the
    logits' device.

    Columns: top-1, its probability, the true class's probability, and the margin: the true class's
    logit minus the largest other logit, positive if top-1 is right. calibration: also top-1's
    probability at each of `TEMPERATURES`. weights: as in `predictions.Ensemble`.
    """

    def __init__(
        self,
        labelled: LabelledSet,
        device: torch.device,
        *,
        calibration: bool = False,
        weights: str = "equal",
    ) -> None:
        self._labels_N = labelled.labels.to(device)
        self._excluded_C = None if labelled.mask is None else ~labelled.mask.to(device)
        self._members_GM = None if labelled.members is None else labelled.members.to(device)
        self._reduction = labelled.class_reduction
        self._temperatures = TEMPERATURES.tolist() if calibration else ()
        self._weights = weights

    def __call__(self, index: np.ndarray, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """index (int64 [B]): indices of the images in the dataset."""
        if self._weights == "entropy":
            logits_BC = averaged_by_entropy([self._of_set(each_BC) for each_BC in outputs])
        elif self._weights == "failures":
            first_BC, second_BC, weight_B1 = outputs
            members = self._of_set(first_BC), self._of_set(second_BC)
            logits_BC = gated_average(*members, weight_B1)
        else:
            mean_BC = outputs[0] if len(outputs) == 1 else torch.stack([*outputs]).mean(dim=0)
            logits_BC = self._of_set(mean_BC)
        labels_B1 = self._labels_N[on_device(index, self._labels_N.device)].unsqueeze(1)
        p_BC = logits_BC.softmax(dim=1)
        top1_B1 = logits_BC.argmax(dim=1, keepdim=True)
        rival_B1 = logits_BC.scatter(1, labels_B1, -torch.inf).amax(dim=1, keepdim=True)
        margin_B1 = logits_BC.gather(1, labels_B1) - rival_B1
        columns = [top1_B1, p_BC.gather(1, top1_B1), p_BC.gather(1, labels_B1), margin_B1]
        for temperature in self._temperatures:
            columns.append((logits_BC / temperature).softmax(dim=1).gather(1, top1_B1))
        return torch.cat([column.float() for column in columns], dim=1)

    def _of_set(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Logits of the dataset's classes; -inf for others."""
        logits_BC = masks.grouped(logits_BC, self._members_GM, self._reduction)
        if self._excluded_C is None:
            return logits_BC
        return logits_BC.masked_fill(self._excluded_C, -torch.inf)


def averaged_by_entropy(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logarithm [B, C] of the average of members' probabilities, from their logits [B, C].

    An image's weights are exp(-entropy) of each member's probabilities, divided by their sum.
    """
    log_p_MBC = torch.stack([*logits]).log_softmax(dim=2)
    entropy_MB1 = torch.special.entr(log_p_MBC.exp()).sum(dim=2, keepdim=True)
    return (log_p_MBC + (-entropy_MB1).log_softmax(dim=0)).logsumexp(dim=0)


def gated(first: Model, second: Model, reference: Mapping[str, torch.Tensor]) -> list[Model]:
    """Two models for `gated_average`: both with their logits divided by their temperatures, and the
    second model's weight [B, 1] before its sigmoid, from its features. It is by an image's distance
    to those that only the second gets right (VRF). reference: of `engine.store.cells.Gated`."""
    failures_MD = reference["failures"]
    neighbour, middle, width = reference["numbers"].tolist()

    def weight(features_BD: torch.Tensor) -> torch.Tensor:
        distance_B1 = squared_distance(features_BD, failures_MD, int(neighbour))
        return (middle - distance_B1) / width

    scaled = [
        Model(model.embed, lambda x_BD, head=model.head, t=t: head(x_BD) / t)
        for model, t in zip((first, second), reference["temperatures"], strict=True)
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


def gated_average(
    first_BC: torch.Tensor, second_BC: torch.Tensor, weight_B1: torch.Tensor
) -> torch.Tensor:
    """The logarithm [B, C] of the average of two models' probabilities, from their logits.

    weight_B1: of the second, before its sigmoid.
    """
    return torch.logaddexp(
        first_BC.log_softmax(1) + F.logsigmoid(-weight_B1),
        second_BC.log_softmax(1) + F.logsigmoid(weight_B1),
    )


def predictions_table(
    reduced_NK: torch.Tensor, labelled: LabelledSet, positions: np.ndarray
) -> pa.Table:
    """The rows to store, from the output of `Reduction` for the images at `positions` (int64
    [N])."""
    reduced_NK = reduced_NK.cpu()
    top1_N, *numbers = reduced_NK[:, :4].unbind(dim=1)
    columns = {
        "index": positions,
        "source": labelled.pack.sources[positions],
        "label": labelled.labels[positions].numpy(),
        "top1": top1_N.to(torch.int64).numpy(),
        **{
            name: column.contiguous().numpy()
            for name, column in zip(predictions.PROBABILITIES, numbers, strict=True)
        },
    }
    schema = predictions.SCHEMA
    if labelled.group is not None:
        columns["group"] = labelled.group[positions]
        schema = schema.append(predictions.GROUP)
    for name, values in labelled.columns.items():
        columns[f"{predictions.COLUMN}{name}"] = values[positions]
        schema = schema.append(pa.field(f"{predictions.COLUMN}{name}", pa.string()))
    if temperatures := reduced_NK.shape[1] - 4:
        ends = pa.array(np.arange(len(positions) + 1) * temperatures, pa.int32())
        confidences = reduced_NK[:, 4:].numpy().ravel()
        columns[predictions.SCALED.name] = pa.ListArray.from_arrays(ends, confidences)
        schema = schema.append(predictions.SCALED)
    return pa.table(columns, schema=schema)
