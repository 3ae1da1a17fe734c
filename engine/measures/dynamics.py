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

from engine.measures import bootstrap, metrics
from engine.measures.metrics import Grid
from engine.measures.predictions import SetPredictions
from engine.measures.rows import PRE, Arm, OfArm

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
    """A curve's value in percent at a step, its 95% interval, and the Monte-Carlo standard error of
    the interval's ends. `quantity`: downstream | ood | upstream."""

    quantity: str
    step: int
    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Claim(OfArm):
    """The claim about one method, as the module defines it.

    `peak`, `saturation` and `best` are steps, beside them their OOD accuracies in percent; `fall`
    is in points, `low` and `high` its interval, `error` the Monte-Carlo standard error of its ends.
    holds: whether `low` is above 0.
    """

    peak: int
    peak_ood: float
    saturation: int
    saturation_ood: float
    best: int
    fall: float
    low: float
    high: float
    error: float
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
    *,
    seed: int = 0,
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
        _of_arm(grid, arm, sorted(of_arm), sets, upstream, trained_on, seed)
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
    low, high, error = bootstrap.ends(samples, bootstrap.TAIL / saturation)
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
        error=error,
        holds=low > 0,
    )


def _of_arm(
    grid: Grid,
    arm: Arm,
    steps: Sequence[int],
    sets: Sequence[str],
    upstream: str,
    trained_on: Sequence[str],
    seed: int,
) -> Dynamics:
    arms = [arm.before, *(arm._replace(setting=setting(step, arm.setting)) for step in steps)]
    steps = [0, *steps]
    columns = {name: _downstream_and_ood(grid, name, arms, trained_on, len(sets)) for name in sets}
    columns[upstream] = np.mean(
        [_sums(grid.predictions[upstream], grid, arms, name) for name in trained_on], axis=0
    )

    def curves(means: Sequence[np.ndarray]) -> np.ndarray:
        """[B, 3, steps] in percent, from the means [B, 2 * steps] of each set and of upstream."""
        *of_sets, of_upstream = means
        both = np.sum(of_sets, axis=0).reshape(-1, 2, len(steps))
        return 100 * np.concatenate([both, of_upstream[:, None]], axis=1)

    def draw(start: int, stop: int) -> np.ndarray:
        means = bootstrap.means(grid.predictions, columns, resamples=stop, seed=seed, start=start)
        return curves(list(means.values()))

    draws = metrics.settle(draw, lambda draws: draws.reshape(len(draws), -1))
    totals = {name: grid.predictions[name].total.sum() for name in columns}
    values = curves(
        [sums.mean(axis=0).sum(axis=0)[None] / totals[name] for name, sums in columns.items()]
    )[0]
    points = [
        Point(*arm, quantity, step, float(values[q, k]), *bootstrap.ends(draws[:, q, k]))
        for q, quantity in enumerate(QUANTITIES)
        for k, step in enumerate(steps)
    ]
    return Dynamics(arm, tuple(points), claim(arm, steps, values[:2], draws[:, :2]))


def _downstream_and_ood(
    grid: Grid, name: str, arms: Sequence[Arm], trained_on: Sequence[str], sets: int
) -> np.ndarray:
    """[seeds, sources, 2 * arms]: what a set adds to the downstream curve and to the OOD curve."""
    elsewhere, n = grid.predictions[name], len(trained_on)
    columns = [column for column in trained_on if column != name]
    ood = sum(_sums(elsewhere, grid, arms, column) for column in columns) / (n * (sets - 1))
    if name not in trained_on:
        return np.concatenate([np.zeros_like(ood), ood], axis=-1)
    on_it = grid.downstream_predictions[name]
    if not on_it.same_images(elsewhere):
        raise ValueError(
            f"models fine-tuned on {name} and the pre-trained model saw different images of it: "
            "evaluate all of them on the same split"
        )
    before = elsewhere.sums((arms[0], ""), grid.seeds)[:, :, None]
    after = np.stack([on_it.sums((arm, name), grid.seeds) for arm in arms[1:]], axis=-1)
    downstream = np.concatenate([before, after], axis=-1) / n
    return np.concatenate([downstream, ood], axis=-1)


def _sums(
    of_set: SetPredictions[metrics.Key], grid: Grid, arms: Sequence[Arm], downstream: str
) -> np.ndarray:
    """[seeds, sources, arms] weight of correct images of the models fine-tuned on a set."""
    sums = [of_set.sums((arm, "" if arm.method == PRE else downstream), grid.seeds) for arm in arms]
    return np.stack(sums, axis=-1)
