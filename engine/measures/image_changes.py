"""Which images of a set fine-tuning gains and loses: of each, in how many rows of the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.measures.predictions import SetPredictions
from engine.measures.rows import PRE, Evaluation

GAINED, LOST = "gained", "lost"
MOST = 12  # images of a set, of each change


@dataclass(frozen=True)
class ImageChange:
    """An image that some rows answer otherwise than the pre-trained model: right in place of wrong
    (`GAINED`), or wrong in place of right (`LOST`).

    index: the image's place in the set's pack. label, before, after: classes, as positions in the
    head's order; `after` is what most of the rows that lost it answer. rows: how many gained or
    lost it, a model of a row, column and seed each; `of`: how many there are. by_method: `rows` by
    key of the method.
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


def most_changed(evaluations: Sequence[Evaluation], most: int = MOST) -> list[ImageChange]:
    """By model and set, the images that most rows gained, then those that most rows lost.

    Counted are the rows of tables that were fine-tuned on other sets. Of equal counts the image
    that comes first in the set is first. Raises ValueError for unreadable predictions.
    """
    by_set: dict[tuple[str, str], list[Evaluation]] = {}
    for row in evaluations:
        if is_counted(row):
            by_set.setdefault((row.model, row.evaluated_on), []).append(row)
    changes = []
    for rows in by_set.values():
        bank = SetPredictions()
        answers = [bank.add(row.path, row.model).top1 for row in rows]
        changes += of_set(rows, bank, answers, most)
    return changes


def is_counted(row: Evaluation) -> bool:
    """Whether it is of a pre-trained model, or of a row of tables that was fine-tuned on another
    set."""
    return row.method == PRE or (row.headline and not row.on_downstream)


def of_set(
    rows: Sequence[Evaluation],
    bank: SetPredictions,
    answers: Sequence[np.ndarray],
    most: int = MOST,
) -> list[ImageChange]:
    """Those of a model on a set, of rows that are counted. bank: the set's images; answers: by row,
    its top-1 classes [N]."""
    (pre,) = [k for k, row in enumerate(rows) if row.method == PRE]
    before, after = rows[pre], [row for row in rows if row.method != PRE]
    if not after:
        return []
    index_N, label_N = (bank.images[name].to_numpy() for name in ("index", "label"))
    before_N = answers[pre]
    after_RN = np.stack([top1 for row, top1 in zip(rows, answers, strict=True) if row != before])
    was_right_N, is_right_RN = before_N == label_N, after_RN == label_N
    changes = []
    for change, changed_RN in (
        (GAINED, is_right_RN & ~was_right_N),
        (LOST, ~is_right_RN & was_right_N),
    ):
        count_N = changed_RN.sum(axis=0)
        for image in np.argsort(-count_N, kind="stable")[:most]:
            if not count_N[image]:
                break
            changed = np.flatnonzero(changed_RN[:, image])
            given = Counter(after_RN[changed, image].tolist())
            changes.append(
                ImageChange(
                    before.model,
                    before.evaluated_on,
                    change,
                    int(index_N[image]),
                    int(label_N[image]),
                    int(before_N[image]),
                    max(given, key=lambda answer: (given[answer], -answer)),
                    int(count_N[image]),
                    len(after),
                    Counter(after[row].method for row in changed),
                )
            )
    return changes
