"""Logits reduced to the predictions that are stored of each image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from engine.data import grouping
from engine.data.sets import LabelledSet
from engine.measures import predictions
from engine.measures.calibration import TEMPERATURES
from loaders.batch import on_device


class Reduction:
    """Reduces logits [B, C] to predictions, float32 [B, 4] or [B, 4 + T], on the device of the
    logits.

    The columns: top-1, its probability, the true class's probability, and the margin: the true
    class's logit minus the largest other logit, positive where top-1 is right. calibration: then
    top-1's probability at each of `calibration.TEMPERATURES`.
    """

    def __init__(
        self, labelled: LabelledSet, device: torch.device, *, calibration: bool = False
    ) -> None:
        self._labels_N = labelled.labels.to(device)
        self._excluded_C = None if labelled.mask is None else ~labelled.mask.to(device)
        self._members_GM = None if labelled.members is None else labelled.members.to(device)
        self._temperatures = TEMPERATURES.tolist() if calibration else ()

    def __call__(self, index: np.ndarray, logits_BC: torch.Tensor) -> torch.Tensor:
        """`index` (int64 [B]): places of the images in the set."""
        logits_BC = grouping.grouped(logits_BC, self._members_GM)
        if self._excluded_C is not None:
            logits_BC = logits_BC.masked_fill(self._excluded_C, -torch.inf)
        labels_B1 = self._labels_N[on_device(index, self._labels_N.device)].unsqueeze(1)
        p_BC = logits_BC.softmax(dim=1)
        top1_B1 = logits_BC.argmax(dim=1, keepdim=True)
        rival_B1 = logits_BC.scatter(1, labels_B1, -torch.inf).amax(dim=1, keepdim=True)
        margin_B1 = logits_BC.gather(1, labels_B1) - rival_B1
        columns = [top1_B1, p_BC.gather(1, top1_B1), p_BC.gather(1, labels_B1), margin_B1]
        for temperature in self._temperatures:
            columns.append((logits_BC / temperature).softmax(dim=1).gather(1, top1_B1))
        return torch.cat([column.float() for column in columns], dim=1)


def predictions_table(
    reduced_NK: torch.Tensor, labelled: LabelledSet, positions: np.ndarray
) -> pa.Table:
    """The rows to store, of what `Reduction` made of logits on the images at `positions` (int64
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
    if temperatures := reduced_NK.shape[1] - 4:
        ends = pa.array(np.arange(len(positions) + 1) * temperatures, pa.int32())
        confidences = reduced_NK[:, 4:].numpy().ravel()
        columns[predictions.SCALED.name] = pa.ListArray.from_arrays(ends, confidences)
        schema = schema.append(predictions.SCALED)
    return pa.table(columns, schema=schema)
