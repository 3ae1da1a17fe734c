"""Accuracy on each half of the held-out images: one half can choose, and the other measure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas

from engine.measures import predictions
from engine.measures.rows import Arm, Evaluation

HALVES = ["first_half_pct", "second_half_pct"]


def accuracy_by_half(evaluations: Sequence[Evaluation], arms: Sequence[Arm]) -> pandas.DataFrame:
    """Accuracy in percent of each arm on both halves of its downstream dataset's images: one row
    per arm (its index in `arms`) and downstream dataset, and the columns `HALVES`.

    A half has every second source image, so that all copies of one are in the same half. Means are
    over seeds and the datasets of a union; a half without images is NaN.
    """
    places, rows = {arm: k for k, arm in enumerate(arms)}, []
    for row in evaluations:
        if row.on_downstream and row.headline:
            table = predictions.read(row.path)
            half = np.unique(table["source"].to_numpy(), return_inverse=True)[1] % 2
            weight = predictions.weights(table)
            hit = table["top1"].to_numpy() == table["label"].to_numpy()
            right, total = (np.bincount(half, of, minlength=2) for of in (weight * hit, weight))
            with np.errstate(invalid="ignore"):
                rows.append((places[row.arm], row.downstream, *(100 * right / total)))
    table = pandas.DataFrame(rows, columns=["arm", "downstream", *HALVES])
    return table.groupby(["arm", "downstream"], sort=False)[HALVES].mean().reset_index()
