"""Which images of a set fine-tuning gains and loses: of each, in how many rows of the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.measures import parallel, predictions
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
        if row.method == PRE or (row.headline and not row.on_downstream):
            by_set.setdefault((row.model, row.evaluated_on), []).append(row)
    changes = parallel.each(lambda rows: _of_set(rows, most), by_set.values())
    return [change for of_set in changes for change in of_set]


def _of_set(rows: Sequence[Evaluation], most: int) -> list[ImageChange]:
    """Those of a model on a set."""
    (before,) = [row for row in rows if row.method == PRE]
    after = [row for row in rows if row.method != PRE]
    if not after:
        return []
    index_N, label_N, before_N = predictions.answers(before.path)
    after_RN = np.stack([predictions.answers(row.path)[2] for row in after])
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
            answers = Counter(after_RN[changed, image].tolist())
            changes.append(
                ImageChange(
                    before.model,
                    before.evaluated_on,
                    change,
                    int(index_N[image]),
                    int(label_N[image]),
                    int(before_N[image]),
                    max(answers, key=lambda answer: (answers[answer], -answer)),
                    int(count_N[image]),
                    len(after),
                    Counter(after[row].method for row in changed),
                )
            )
    return changes
