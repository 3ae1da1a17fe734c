"""95% intervals of all that a grid reports: accuracies, RI, mRI, and what predictions are like.

All sets are drawn together, with the upstream set: effective robustness compares a model's accuracy
with its accuracy upstream, and its trend line is fitted again in every draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

import numpy as np

from engine.measures import behaviour, bootstrap, metrics, parallel
from engine.measures.behaviour import BINS
from engine.measures.metrics import RESAMPLES, Grid, Key, Summary
from engine.measures.predictions import SetPredictions
from engine.measures.rows import PRE, Agreement, Arm, Behaviour, Interval, ModelOnSet

ERROR, ROBUSTNESS, CHANGE = "calibration_error", "effective_robustness", "change"
SHARES = (*Agreement._fields, "accuracy")  # percent of images, clipped to 0 and 100
BLOCK = 32  # cells that share a matrix product
EVIDENCE = 6_000_000  # draws x sources: so many leave 0.05 points of an accuracy's interval
AT_ONCE = 1 << 28  # draws x sources of all sets, a byte each
AGREEMENT, CALIBRATION = 4, 8  # an accuracy's draws over those of agreement and of calibration,
FEWEST = 256  # which need more arithmetic for each draw; but never fewer draws than this
Drawn = dict[tuple[str, ModelOnSet], np.ndarray]  # by quantity


def intervals(
    grid: Grid,
    summary: Summary,
    behaviours: Sequence[Behaviour],
    sets: Sequence[str],
    upstream: str,
    downstreams: Sequence[str] = (),
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Percentile intervals over source images and training seeds (the population: `bootstrap`).
    downstreams: as in `metrics.summarise`.

    Rows: accuracies in the order of the grid's, then RI, then mRI as in `summary`, then each number
    of `behaviours` and its mean over the sets that a model was not trained on, then the change on
    the upstream set and its mean. Cells on the set that they were trained on are drawn separately.

    `resamples`, the draws of accuracies, defaults to fewer the more sources the sets have:
    Monte-Carlo errors fall with both. A share of 0 or 100% has no width, since all images agree.
    The draws of a calibration error near 0 lie above it, since noise only adds to it.
    """
    downstreams = downstreams or sets
    resamples = resamples or _enough(grid)
    drawn = _draws(grid, grid.predictions, resamples, seed)
    for name, of_set in grid.downstream_predictions.items():
        drawn |= _draws(grid, {name: of_set}, resamples, seed)
    known = {row.cell: row.accuracy for row in grid.accuracy}
    _add_robustness(drawn, known, sets, upstream)

    rows = _rows([("accuracy", cell, x, drawn["accuracy", cell]) for cell, x in known.items()])
    rows += _rows(
        [
            ("RI", ModelOnSet(*arm, downstream, ""), value, _ri(drawn, arm, downstream, sets))
            for arm, columns in metrics.improvements(grid.accuracy, sets, downstreams).items()
            for downstream, value in columns.items()
        ]
    )
    rows += [
        Interval(*row.arm, "", "", "mRI", row.mri, row.mri_low, row.mri_high, row.error)
        for row in summary.mri
    ]
    names = (*Agreement._fields, ERROR, ROBUSTNESS)
    values = {(name, row.cell): getattr(row, name) for row in behaviours for name in names}
    values = {key: value for key, value in values.items() if value is not None}
    elsewhere = [cell for cell in known if cell.evaluated_on in sets and not cell.on_downstream]
    changes = {}
    for cell in known:
        before = ModelOnSet(*cell.arm.before, "", upstream)
        trained = cell.method != PRE and cell.downstream != upstream
        if trained and cell.evaluated_on == upstream and before in known:
            drawn[CHANGE, cell] = drawn["accuracy", cell] - drawn["accuracy", before]
            changes[CHANGE, cell] = known[cell] - known[before]
    forgotten = [cell for _, cell in changes if cell.downstream in downstreams]
    for numbers, cells, on in ((values, elsewhere, ""), (changes, forgotten, upstream)):
        rows += _rows([(name, cell, x, drawn[name, cell]) for (name, cell), x in numbers.items()])
        rows += _means(drawn, numbers, cells, on)
    return tuple(rows)


def _enough(grid: Grid) -> int:
    """Draws for the set of fewest sources, as far as time and memory go."""
    sources = [len(of_set.sources) for of_set in grid.predictions.values()]
    return max(RESAMPLES, min(metrics.MOST, EVIDENCE // min(sources), AT_ONCE // sum(sources)))


def _draws(
    grid: Grid, by_set: Mapping[str, SetPredictions[Key]], resamples: int, seed: int
) -> Drawn:
    """Draws of accuracies, agreement and calibration errors, in percent and points."""
    draws = bootstrap.draw(by_set, resamples=resamples, seeds=len(grid.seeds), seed=seed)
    for_agreement = draws.first(_fewer(resamples, AGREEMENT))
    for_calibration = draws.first(_fewer(resamples, CALIBRATION))

    def block(work: tuple[str, list[Key]]) -> Drawn:
        name, keys = work
        of_set, drawn = by_set[name], Drawn()
        n = len(of_set.sources)
        models = [(key, k) for key in keys for k in sorted(of_set.correct[key])]
        sums = [grid.source_sums[ModelOnSet(*arm, i, name)][k] for (arm, i), k in models]
        correct = [of_set.correct[key][k].astype(np.float32) for key, k in models]
        agreed = [np.zeros((n, 3), np.float32) if x.agreed is None else x.agreed for x in sums]
        accuracies = draws.mean(name, np.stack(correct, axis=1))
        agreements = for_agreement.mean(name, np.concatenate(agreed, axis=1))
        agreements = agreements.reshape(-1, len(models), 3)
        gaps = for_calibration.mean(name, np.concatenate([x.by_bin(n) for x in sums], axis=1))
        errors = np.abs(gaps).reshape(len(gaps), -1, BINS).sum(axis=2)

        def percent(of: bootstrap.Draws, values: np.ndarray, columns: list[int]) -> np.ndarray:
            return (100 * of.over_seeds([values[:, k] for k in columns])).astype(np.float32)

        for arm, i in keys:
            columns = [k for k, (key, _) in enumerate(models) if key == (arm, i)]
            cell = ModelOnSet(*arm, i, name)
            drawn[ERROR, cell] = percent(for_calibration, errors, columns)
            drawn["accuracy", cell] = accuracy = percent(draws, accuracies, columns)
            if sums[columns[0]].agreed is None:
                continue
            same, lost, gained = percent(for_agreement, agreements, columns).T
            samples = (same, _with_agreement(accuracy) - gained, lost, gained)
            names = Agreement._fields
            drawn |= {(q, cell): x for q, x in zip(names, samples, strict=True)}
        return drawn

    blocks = [
        (name, list(of_set.correct)[start : start + BLOCK])
        for name, of_set in by_set.items()
        for start in range(0, len(of_set.correct), BLOCK)
    ]
    return dict(itertools.chain.from_iterable(d.items() for d in parallel.each(block, blocks)))


def _fewer(resamples: int, part: int) -> int:
    return max(FEWEST, resamples // part)


def _with_agreement(samples: np.ndarray) -> np.ndarray:
    """The first of an accuracy's draws: those that agreement has."""
    return samples[: _fewer(len(samples), AGREEMENT)]


def _add_robustness(
    drawn: Drawn, known: Collection[ModelOnSet], sets: Sequence[str], upstream: str
) -> None:
    """Add draws of effective robustness, NaN where a draw has no trend line."""
    for cells, fit in behaviour.trends(known, sets, upstream).values():
        x, y = (
            np.stack([_with_agreement(drawn["accuracy", cell]) for cell in on], axis=1)
            for on in ([behaviour.at(cell, upstream) for cell in cells], cells)
        )
        robustness = behaviour.effective_robustness(x, y, fit)
        drawn |= {(ROBUSTNESS, cell): x for cell, x in zip(cells, robustness.T, strict=True)}


def _means(
    drawn: Drawn,
    values: Mapping[tuple[str, ModelOnSet], float],
    cells: Sequence[ModelOnSet],
    on: str,
) -> list[Interval]:
    """A row for each arm and quantity that all of the arm's cells have: the mean over them."""
    by_arm: dict[Arm, list[ModelOnSet]] = {}
    for cell in cells:
        by_arm.setdefault(cell.arm, []).append(cell)
    rows = []
    for arm, of_arm in by_arm.items():
        for name in dict.fromkeys(name for name, _ in values):
            if all((name, cell) in values for cell in of_arm):
                samples = np.mean([drawn[name, cell] for cell in of_arm], axis=0)
                value = fmean(values[name, cell] for cell in of_arm)
                rows.append((name, ModelOnSet(*arm, "", on), value, samples))
    return _rows(rows)


def _rows(numbers: Sequence[tuple[str, ModelOnSet, float, np.ndarray]]) -> list[Interval]:
    """Intervals of numbers from their draws [B]; NaN draws are left out."""

    def row(number: tuple[str, ModelOnSet, float, np.ndarray]) -> Interval:
        name, cell, value, samples = number
        low, high, error = bootstrap.ends(samples[~np.isnan(samples)])
        if name in SHARES:
            low, high = (min(max(end, 0.0), 100.0) for end in (low, high))
        return Interval(*cell.key, name, value, low, high, error)

    return parallel.each(row, numbers)


def _ri(drawn: Drawn, arm: Arm, downstream: str, sets: Sequence[str]) -> np.ndarray:
    changes = [
        drawn["accuracy", ModelOnSet(*arm, downstream, name)]
        - drawn["accuracy", ModelOnSet(*arm.before, "", name)]
        for name in sets
        if name != downstream
    ]
    return np.mean(changes, axis=0)
