"""Accuracies against a key that a campaign varies, such as how many images a model trained on.

A row of a varied key has it in its setting, as in `dataset.shots=4`. The change on the sets that a
model was not trained on is mRI. Intervals are about source images and training seeds, as everywhere
(`bootstrap`); seeds draw the part of the images too, so their intervals cover that draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.measures import bootstrap
from engine.measures.metrics import Grid
from engine.measures.rows import Arm, ModelOnSet, Mri


@dataclass(frozen=True)
class Point:
    """An arm at a value of the varied key.

    rest: what else its setting says. value: infinite for `dataset.shots=0`, which is all images.
    mri: in points. downstream: mean accuracy in percent over the sets trained on, each on its
    images for evaluation, with the ends of its interval; None where these are not evaluated.
    """

    arm: Arm
    rest: str
    value: float
    mri: Mri
    downstream: float | None
    downstream_ends: tuple[float, float] | None


def points(grid: Grid, mri: Sequence[Mri], key: str) -> tuple[Point, ...]:
    """The headline arms of `mri` whose setting holds the key, by their order and then by value."""
    rows = [row for row in mri if row.headline and value_of(row.arm, key) is not None]
    if not rows:
        return ()
    means, ends = _downstream(grid, [row.arm for row in rows])
    order = list(dict.fromkeys(_series(row.arm, key) for row in rows))
    made = [
        Point(row.arm, _rest(row.arm, key), value, row, mean, of_mean)
        for row, mean, of_mean in zip(rows, means, ends, strict=True)
        if (value := value_of(row.arm, key)) is not None
    ]
    return tuple(sorted(made, key=lambda p: (order.index(_series(p.arm, key)), p.value)))


def value_of(arm: Arm, key: str) -> float | None:
    """The key's value in an arm's setting, None where that does not hold it."""
    words = dict(word.split("=", 1) for word in arm.setting.split(",") if "=" in word)
    if key not in words:
        return None
    value = float(words[key])
    return math.inf if (key, value) == ("dataset.shots", 0) else value


def _rest(arm: Arm, key: str) -> str:
    return ",".join(word for word in arm.setting.split(",") if not word.startswith(f"{key}="))


def _series(arm: Arm, key: str) -> Arm:
    """What the values of a curve share."""
    return arm._replace(setting=_rest(arm, key))


def _downstream(
    grid: Grid, arms: Sequence[Arm]
) -> tuple[Sequence[float | None], Sequence[tuple[float, float] | None]]:
    """By arm, mean accuracy over the sets that it was trained on, and its interval; None where no
    arm was evaluated on such a set.

    Raises ValueError where arms were not evaluated on the same of these sets.
    """
    by_arm: dict[Arm, list[ModelOnSet]] = {arm: [] for arm in arms}
    for row in grid.accuracy:
        if row.on_downstream and row.arm in by_arm:
            by_arm[row.arm].append(row.cell)
    if len({frozenset(cell.downstream for cell in cells) for cells in by_arm.values()}) > 1:
        raise ValueError(
            f"{', '.join(map(str, arms))} were not all trained and evaluated on the same sets"
        )
    if not by_arm[arms[0]]:
        return [None] * len(arms), [None] * len(arms)
    sums = [dict.fromkeys(cells, 1 / len(cells)) for cells in by_arm.values()]
    ends = bootstrap.interval(grid.draws.of(sums)).clip(0, 100)
    return grid.values(sums).tolist(), [(low, high) for low, high in ends.T.tolist()]
