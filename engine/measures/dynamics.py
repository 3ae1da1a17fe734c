"""Training dynamics: accuracy during fine-tuning, and whether robustness falls before it saturates.

A curve is a mean over columns at each snapshot's step s, with n downstream sets and A_i^(j)(s) the
accuracy in percent on set j of the model that is fine-tuned on set i for s steps:

    downstream(s) = 1/n sum_i A_i^(i)(s)
    ood(s)        = 1/(n(n-1)) sum_i sum_{j != i} A_i^(j)(s)
    upstream(s)   = 1/n sum_i A_i^(up)(s)

Step 0 is the pre-trained model. A column whose training ends before step s counts as it ended.
Every number of every step is resampled jointly (`bootstrap`).

The claim of ImageNet-RIB's slides, made precise:

- The peak is the first step of the highest ood(s).
- Downstream accuracy saturates at the first step whose downstream(s) has reached 95% of its total
  rise, which is from downstream(0) to its highest value. If it does not rise, there is no such step
  and no claim.
- The fall is ood(best) - ood(saturation), where best is the first step of the highest ood(s) before
  saturation, step 0 included.
- Robustness falls before downstream accuracy saturates where the fall's interval lies above 0.
  Because best is chosen among m earlier steps, that interval has the level 1 - 0.05 / m
  (Bonferroni): it holds for all m of them together. The two steps are taken as they were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.measures import bootstrap
from engine.measures.metrics import Grid, Weights
from engine.measures.rows import PRE, Arm, ModelOnSet, OfArm

QUANTITIES = ("downstream", "ood", "upstream")
SATURATED = 0.95  # of the total rise
_STEP = "step="


def setting(step: int, of_cell: str = "") -> str:
    """The setting of the arm of a model after so many optimizer steps; of_cell: its cell's."""
    return ",".join(filter(None, (of_cell, f"{_STEP}{step}")))


def step_of(arm: Arm) -> int | None:
    """The optimizer steps of a snapshot's arm, None for an arm that is no snapshot's."""
    last = arm.setting.rpartition(",")[2]
    return int(last.removeprefix(_STEP)) if last.startswith(_STEP) else None


def of_cell(arm: Arm) -> Arm:
    """The arm of the cell that a snapshot's arm belongs to."""
    return arm._replace(setting=arm.setting.rpartition(",")[0])


@dataclass(frozen=True)
class Point(OfArm):
    """A curve's value in percent at a step, and its 95% interval. `quantity`: downstream | ood |
    upstream."""

    quantity: str
    step: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Claim(OfArm):
    """The claim about one method, as the module defines it.

    `peak`, `saturation` and `best` are steps, beside them their OOD accuracies in percent; `fall`
    is in points, `low` and `high` its interval. holds: whether `low` is above 0.
    """

    peak: int
    peak_ood: float
    saturation: int
    saturation_ood: float
    best: int
    fall: float
    low: float
    high: float
    holds: bool


@dataclass(frozen=True)
class Dynamics:
    """The curves of a method on a pre-trained model; its arm has no setting.

    points: by quantity, then by step, the first of step 0. claim: None where downstream accuracy
    does not rise.
    """

    arm: Arm
    points: tuple[Point, ...]
    claim: Claim | None

    def curve(self, quantity: str) -> list[Point]:
        """The points of a quantity, by step."""
        return [point for point in self.points if point.quantity == quantity]


def dynamics(
    grid: Grid,
    sets: Sequence[str],
    upstream: str,
    downstreams: Sequence[str] = (),
) -> list[Dynamics]:
    """The dynamics of every method that has snapshots; empty where none has.

    downstreams: the sets fine-tuned on, of which those among `sets` count; empty: `sets`.

    Raises ValueError where a model and the pre-trained model saw different images of the set that
    the model is fine-tuned on, since a curve then has no common start.
    """
    trained_on = [name for name in downstreams or sets if name in sets]
    steps: dict[Arm, list[int]] = {}
    for arm in dict.fromkeys(row.arm for row in grid.accuracy if row.downstream in trained_on):
        if (step := step_of(arm)) is not None:
            steps.setdefault(of_cell(arm), []).append(step)
    return [
        _of_arm(grid, arm, sorted(of_arm), sets, upstream, trained_on)
        for arm, of_arm in steps.items()
    ]


def claim(arm: Arm, steps: Sequence[int], values: np.ndarray, draws: np.ndarray) -> Claim | None:
    """The claim from curves [2, steps] of downstream and OOD accuracy, and their draws
    [B, 2, steps], all in percent; None where downstream accuracy does not rise."""
    downstream, ood = values
    rise = downstream - downstream[0]
    if rise.max() <= 0:
        return None
    saturation = int(np.argmax(rise >= SATURATED * rise.max()))
    best, peak = int(np.argmax(ood[:saturation])), int(np.argmax(ood))
    samples = draws[:, 1, best] - draws[:, 1, saturation]
    low, high = bootstrap.interval(samples, 1 - (1 - bootstrap.LEVEL) / saturation).tolist()
    return Claim(
        *arm,
        peak=steps[peak],
        peak_ood=float(ood[peak]),
        saturation=steps[saturation],
        saturation_ood=float(ood[saturation]),
        best=steps[best],
        fall=float(ood[best] - ood[saturation]),
        low=low,
        high=high,
        holds=low > 0,
    )


def _of_arm(
    grid: Grid,
    arm: Arm,
    steps: Sequence[int],
    sets: Sequence[str],
    upstream: str,
    trained_on: Sequence[str],
) -> Dynamics:
    images = {row.cell: row.n for row in grid.accuracy}
    arms = [arm.before, *(arm._replace(setting=setting(step, arm.setting)) for step in steps)]
    steps = [0, *steps]
    for name in trained_on:
        if images[_cell(arms[0], name, name)] != images[_cell(arms[1], name, name)]:
            raise ValueError(
                f"models fine-tuned on {name} and the pre-trained model saw different images of "
                "it: evaluate all of them on the same split"
            )
    pairs = [(i, j) for i in trained_on for j in sets if i != j]
    of_quantity = ([(i, i) for i in trained_on], pairs, [(i, upstream) for i in trained_on])
    sums = [_mean(arm, places) for places in of_quantity for arm in arms]
    values = grid.values(sums).reshape(3, -1)
    draws = grid.draws.of(sums).reshape(-1, 3, len(arms))
    low, high = bootstrap.interval(draws)
    points = [
        Point(*arm, quantity, step, *map(float, (values[q, k], low[q, k], high[q, k])))
        for q, quantity in enumerate(QUANTITIES)
        for k, step in enumerate(steps)
    ]
    return Dynamics(arm, tuple(points), claim(arm, steps, values[:2], draws[:, :2]))


def _mean(arm: Arm, places: Sequence[tuple[str, str]]) -> Weights:
    """The mean accuracy of an arm's models over pairs of sets trained and evaluated on."""
    weights: dict[ModelOnSet, float] = {}
    for downstream, name in places:
        cell = _cell(arm, downstream, name)
        weights[cell] = weights.get(cell, 0.0) + 1 / len(places)
    return weights


def _cell(arm: Arm, downstream: str, name: str) -> ModelOnSet:
    return ModelOnSet(*arm, "" if arm.method == PRE else downstream, name)
