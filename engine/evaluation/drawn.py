"""Which images of a set a sample holds, worked out from predictions alone. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.evaluation import budget
from engine.evaluation.budget import Frame
from engine.measures import predictions


@dataclass(frozen=True)
class Drawn:
    """The first `images` of a set's order; `index` (int64 [N]) are the pack's places of all N."""

    frame: Frame
    images: int
    index: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether it holds all images of the split."""
        return self.images == len(self.index)


def framed(table: pa.Table, seed: list[int]) -> tuple[Frame, np.ndarray]:
    """Strata and order of a set, and its images' places in the pack (int64 [N]).

    table: what the pre-trained model said of all of them (`predictions.read`).
    """
    label = table["label"].to_numpy()
    group = np.zeros(len(table), np.int64)
    if "group" in table.column_names:
        group = np.unique(table["group"].to_numpy(), return_inverse=True)[1]
    found = budget.frame(
        label == table["top1"].to_numpy(),
        table["p_true"].to_numpy().astype(float),
        label,
        group,
        predictions.weights(table),
        seed=seed,
    )
    return found, table["index"].to_numpy()
