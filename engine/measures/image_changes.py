"""Images of a dataset that fine-tuning flips, and those on which methods disagree.

Averages of models, such as WiSE-FT's, are not counted: they would count a training twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.measures.predictions import SetPredictions
from engine.measures.rows import PRE, Evaluation, pretrained

POSITIVE, NEGATIVE, DISPUTED = "positive flip", "negative flip", "disputed"
MOST = 8  # images per dataset and change


@dataclass(frozen=True)
class ImageChange:
    """An image whose prediction some rows changed: from wrong to right (`POSITIVE`), or from
    right to wrong (`NEGATIVE`); or one that some methods get right more often than others
    (`DISPUTED`).

    index: in the dataset's pack. label, before, after: classes, as positions in the head's order;
    `after` is the most frequent prediction of the rows that flipped it, or that get a disputed
    one wrong. rows: the number of models (one per row, column and seed) that flipped it, or get a
    disputed one right, out of `of`. by_method: `rows` by method.
    """

    model: str
    evaluated_on: str
    change: str
    index: int
    label: int
    before: int
    after: int
    rows: int
    of: int
    by_method: Mapping[str, int]


def find_changes(evaluations: Sequence[Evaluation]) -> list[ImageChange]:
    """The images that the rows of each model changed, by dataset: those with most positive flips,
    then those with most negative flips, then those on which two methods differ most in how many of
    their rows are right; ties in the order of the dataset.

    Reads the predictions of the shown, trained rows fine-tuned on other datasets.
    """
    groups: dict[tuple[str, str, str], list[Evaluation]] = {}
    known = {row.cell for row in evaluations if row.method == PRE}
    for row in evaluations:
        if row.headline and row.trains and not row.on_downstream:
            column = row.downstream if row.method == PRE else pretrained(row, known).downstream
            groups.setdefault((row.model, row.evaluated_on, column), []).append(row)
    models = list(dict.fromkeys(row.model for row in evaluations))
    by_model = sorted(groups.values(), key=lambda rows: models.index(rows[0].model))
    return [change for rows in by_model for change in _of_set(rows)]


def _of_set(rows: Sequence[Evaluation]) -> list[ImageChange]:
    """The changes of one model's rows on one dataset."""
    before, *after = sorted(rows, key=lambda row: row.method != PRE)
    if not after:
        return []
    bank = SetPredictions()
    top1_RN = np.stack([bank.add(row.path).top1.astype(np.int32) for row in (before, *after)])
    index_N, label_N = (bank.images[name].to_numpy() for name in ("index", "label"))
    was_right_N, is_right_RN = top1_RN[0] == label_N, top1_RN[1:] == label_N
    to_right_RN, to_wrong_RN = is_right_RN & ~was_right_N, ~is_right_RN & was_right_N
    method_R = np.array([row.method for row in after])
    rate_MN = np.stack([is_right_RN[method_R == method].mean(axis=0) for method in {*method_R}])
    cases = {  # by change: which rows made it, and what the images are ranked by
        POSITIVE: (to_right_RN, to_right_RN, to_right_RN.sum(axis=0)),
        NEGATIVE: (to_wrong_RN, to_wrong_RN, to_wrong_RN.sum(axis=0)),
        DISPUTED: (is_right_RN, ~is_right_RN, np.ptp(rate_MN, axis=0)),
    }
    changes = []
    for change, (counted_RN, answering_RN, rank_N) in cases.items():
        most = np.argsort(-rank_N, kind="stable")[:MOST]
        for image in most[rank_N[most] > 0]:
            counted = np.flatnonzero(counted_RN[:, image])
            changes.append(
                ImageChange(
                    before.model,
                    before.evaluated_on,
                    change,
                    int(index_N[image]),
                    int(label_N[image]),
                    int(top1_RN[0, image]),
                    int(np.bincount(top1_RN[1:][answering_RN[:, image], image]).argmax()),
                    len(counted),
                    len(after),
                    Counter(after[row].method for row in counted),
                )
            )
    return changes
