"""95% intervals of all that a grid reports: accuracies, RI, mRI, and what predictions are like.

Each is a weighted mean of cells, taken of their numbers and of their draws. Calibration error has
no interval: in simulated campaigns of known truth none that was tried held it as often as it said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.measures import bootstrap, metrics
from engine.measures.effective_robustness import Trend
from engine.measures.metrics import Grid, Summary, Weights
from engine.measures.rows import PRE, Agreement, Arm, Behaviour, Interval, ModelOnSet

ERROR, ROBUSTNESS, CHANGE = "calibration_error", "effective_robustness", "change"
SHARES = (*Agreement._fields, "accuracy")  # percent of images, clipped to 0 and 100


def intervals(
    grid: Grid,
    summary: Summary,
    behaviours: Sequence[Behaviour],
    sets: Sequence[str],
    upstream: str,
    downstreams: Sequence[str] = (),
    *,
    trends: Mapping[str, Trend],
) -> tuple[Interval, ...]:
    """Percentile intervals over source images and training seeds (the population: `bootstrap`).
    downstreams: as in `metrics.summarise`.

    Rows: accuracies in the order of the grid's, then RI, then mRI as in `summary`, then each number
    of `behaviours` and its mean over the sets that a model was not trained on, then the change on
    the upstream set and its mean, then the mean of each number on each set, over the models that
    were not trained on it.

    `trends`: by set, what the effective robustness of `behaviours` is measured against; its lines
    are fitted again in every draw. A share of 0 or 100% has no width, since all images agree.
    """
    downstreams = downstreams or sets
    draws = grid.draws
    known = {row.cell: row.accuracy for row in grid.accuracy}
    cells = list(known)
    numbers = {
        name: (np.array([getattr(row, name) for row in behaviours], float), getattr(draws, name))
        for name in Agreement._fields
    }
    robustness = np.array([row.effective_robustness for row in behaviours], float)
    numbers[ROBUSTNESS] = robustness, _robustness(grid, trends, upstream)

    rows = _rows("accuracy", cells, np.array([*known.values()]), draws.accuracy)
    ri = metrics.improvements(grid.accuracy, sets, downstreams)
    keys = [ModelOnSet(*arm, i, "") for arm, columns in ri.items() for i in columns]
    values = np.array([value for columns in ri.values() for value in columns.values()])
    in_ri = [metrics.in_ri(key.arm, key.downstream, sets) for key in keys]
    rows += _rows("RI", keys, values, draws.of(in_ri))
    rows += [
        Interval(*row.arm, "", "", "mRI", row.mri, row.mri_low, row.mri_high) for row in summary.mri
    ]

    elsewhere = [cell for cell in cells if cell.evaluated_on in sets and not cell.on_downstream]
    for name, (values, samples) in numbers.items():
        places = np.flatnonzero(~np.isnan(values))
        rows += _rows(name, [cells[k] for k in places], values[places], samples[:, places])
    for name, of_cells in numbers.items():
        rows += _means(grid, name, *of_cells, _by_arm(elsewhere), "")

    changes = {
        cell: {cell: 1.0, before: -1.0}
        for cell in cells
        if cell.method != PRE and cell.evaluated_on == upstream != cell.downstream
        if (before := ModelOnSet(*cell.arm.before, "", upstream)) in known
    }
    by_arm = _by_arm([cell for cell in changes if cell.downstream in downstreams])
    sums: dict[ModelOnSet, Weights] = {**changes}
    for arm, of_arm in by_arm.items():
        mean = {cell: 1 / len(of_arm) for cell in of_arm}
        sums[ModelOnSet(*arm, "", upstream)] = mean | {ModelOnSet(*arm.before, "", upstream): -1.0}
    weights = list(sums.values())
    rows += _rows(CHANGE, list(sums), grid.values(weights), draws.of(weights))
    trained = [cell for cell in cells if cell.method != PRE and not cell.on_downstream]
    for on in (*sets, upstream):
        on_set = _by_arm([cell for cell in trained if cell.evaluated_on == on])
        for name, of_cells in numbers.items():
            rows += _means(grid, name, *of_cells, on_set, on)
    return tuple(rows)


def _robustness(grid: Grid, trends: Mapping[str, Trend], upstream: str) -> np.ndarray:
    """Draws [B, cells] of effective robustness, NaN where a draw has no trend line."""
    accuracy, place = grid.draws.accuracy, grid.draws.place
    samples = np.full_like(accuracy, np.nan)
    for trend in trends.values():
        residuals = trend.residuals(lambda cell: accuracy[:, place[cell]], upstream)
        for cell, residual in residuals.items():
            samples[:, place[cell]] = residual
    return samples


def _by_arm(cells: Sequence[ModelOnSet]) -> dict[Arm, list[ModelOnSet]]:
    by_arm: dict[Arm, list[ModelOnSet]] = {}
    for cell in cells:
        by_arm.setdefault(cell.arm, []).append(cell)
    return by_arm


def _means(
    grid: Grid,
    name: str,
    values: np.ndarray,
    samples: np.ndarray,
    by_arm: Mapping[Arm, Sequence[ModelOnSet]],
    on: str,
) -> list[Interval]:
    """A row for each arm all of whose cells have the number: the mean over them."""
    place = grid.draws.place
    places = {arm: [place[cell] for cell in cells] for arm, cells in by_arm.items()}
    places = {arm: of for arm, of in places.items() if not np.isnan(values[of]).any()}
    if not places:
        return []
    keys = [ModelOnSet(*arm, "", on) for arm in places]
    means = np.array([values[of].mean() for of in places.values()])
    drawn = np.stack([samples[:, of].mean(axis=1) for of in places.values()], axis=1)
    return _rows(name, keys, means, drawn)


def _rows(
    name: str, keys: Sequence[ModelOnSet], values: np.ndarray, samples: np.ndarray
) -> list[Interval]:
    """Intervals of numbers [K] from their draws [B, K]."""
    if not keys:
        return []
    ends = bootstrap.interval(samples)
    if name in SHARES:
        ends = ends.clip(0, 100)
    numbers = np.stack([values, *ends], axis=1).tolist()
    return [Interval(*key.key, name, *row) for key, row in zip(keys, numbers, strict=True)]
