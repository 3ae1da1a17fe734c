"""95% intervals of all that a grid reports: accuracies, RI, mRI, and what predictions are like.

All sets are drawn together, the upstream set as well: effective robustness sets a model's accuracy
against that upstream, and the line through all models is fitted again in every draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

import numpy as np

from engine.measures import behaviour, bootstrap, metrics, parallel
from engine.measures.behaviour import BINS
from engine.measures.metrics import RESAMPLES, Gathered, Key, Summary
from engine.measures.predictions import Bank
from engine.measures.rows import PRE, Agreement, Arm, Behaviour, Cell, Interval

ERROR, ROBUSTNESS, CHANGE = "calibration_error", "effective_robustness", "change"
SHARES = (*Agreement._fields, "accuracy")  # percent of images, which end at 0 and 100
BLOCK = 32  # cells that share a matrix product
EVIDENCE = 6_000_000  # draws x sources: so many leave 0.05 points of an accuracy's interval
AT_ONCE = 1 << 28  # draws x sources of all sets, a byte each
SOME, FEW = 4, 8  # an accuracy's draws to one of what is printed as means, and of what takes `BINS`
FEWEST = 256  # times the work; that many at least
Drawn = dict[tuple[str, Cell], np.ndarray]  # by quantity


def intervals(
    grid: Gathered,
    summary: Summary,
    behaviours: Sequence[Behaviour],
    sets: Sequence[str],
    upstream: str,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Percentile intervals over source images and training seeds (the population: `bootstrap`).

    `resamples`, draws of accuracies, defaults to fewer the more sources the sets have: Monte-Carlo
    errors fall with both. Accuracy rows come first, in the order of the grid's, then RI, then mRI
    as `summary` has it, then each number of `behaviours` and its mean over the sets that a model
    was not trained on, then the change on the upstream set and its mean. Cells on their own set are
    drawn by themselves. A share of 0 or 100% has no width: resampling cannot show what the images
    never did. Ends of shares are cut there, which few seeds would otherwise pass. The draws of a
    calibration error that is almost 0 lie above it, since noise only adds to it.
    """
    resamples = resamples or _enough(grid)
    drawn = _draws(grid, grid.banks, resamples, seed)
    for name, bank in grid.own_banks.items():
        drawn |= _draws(grid, {name: bank}, resamples, seed)
    known = {row.place: row.accuracy for row in grid.accuracy}
    _add_robustness(drawn, known, sets, upstream)

    out = _rows([("accuracy", cell, x, drawn["accuracy", cell]) for cell, x in known.items()])
    out += _rows(
        [
            ("RI", Cell(*arm, downstream, ""), value, _ri(drawn, arm, downstream, sets))
            for arm, columns in metrics.improvements(grid.accuracy, sets).items()
            for downstream, value in columns.items()
        ]
    )
    out += [
        Interval(*row.arm, "", "", "mRI", row.mri, row.mri_low, row.mri_high, row.error)
        for row in summary.mri
    ]
    names = (*Agreement._fields, ERROR, ROBUSTNESS)
    values = {(name, row.place): getattr(row, name) for row in behaviours for name in names}
    values = {key: value for key, value in values.items() if value is not None}
    elsewhere = [cell for cell in known if cell.evaluated_on in sets and not cell.on_its_own]
    forgotten = {}
    for cell in known:
        start = Cell(*cell.arm.before, "", upstream)
        if (
            cell.evaluated_on == upstream != cell.downstream
            and cell.method != PRE
            and start in known
        ):
            drawn[CHANGE, cell] = drawn["accuracy", cell] - drawn["accuracy", start]
            forgotten[CHANGE, cell] = known[cell] - known[start]
    for some, cells, on in (
        (values, elsewhere, ""),
        (forgotten, [cell for _, cell in forgotten if cell.downstream in sets], upstream),
    ):
        out += _rows([(name, cell, x, drawn[name, cell]) for (name, cell), x in some.items()])
        out += _means(drawn, some, cells, on)
    return tuple(out)


def _enough(grid: Gathered) -> int:
    """Draws for the set of fewest sources, as far as time and memory go."""
    fewest = min(len(bank.sources) for bank in grid.banks.values())
    together = sum(len(bank.sources) for bank in grid.banks.values())
    return max(RESAMPLES, min(metrics.MOST, EVIDENCE // fewest, AT_ONCE // together))


def _draws(grid: Gathered, banks: Mapping[str, Bank[Key]], resamples: int, seed: int) -> Drawn:
    """Draws of accuracies, agreement and calibration errors, in percent and points."""
    draws = bootstrap.draw(banks, resamples=resamples, seeds=len(grid.seeds), seed=seed)
    some, few = (draws.first(max(FEWEST, resamples // part)) for part in (SOME, FEW))

    def block(work: tuple[str, list[Key]]) -> Drawn:
        name, keys = work
        bank, drawn = banks[name], Drawn()
        n = len(bank.sources)
        each = [(key, k) for key in keys for k in sorted(bank.correct[key])]
        answers = [grid.answers[Cell(*arm, i, name)][k] for (arm, i), k in each]
        correct = [bank.correct[key][k].astype(np.float32) for key, k in each]
        agreed = [np.zeros((n, 3), np.float32) if a.agreed is None else a.agreed for a in answers]
        shares = draws.mean(name, np.stack(correct, axis=1))
        agreements = some.mean(name, np.concatenate(agreed, axis=1)).reshape(-1, len(each), 3)
        errors = few.mean(name, np.concatenate([a.by_bin(n) for a in answers], axis=1))
        errors = np.abs(errors).reshape(len(errors), -1, BINS).sum(axis=2)

        def percent(of: bootstrap.Draws, values: np.ndarray, at: list[int]) -> np.ndarray:
            return (100 * of.over_seeds([values[:, k] for k in at])).astype(np.float32)

        for arm, i in keys:
            at = [k for k, (key, _) in enumerate(each) if key == (arm, i)]
            cell = Cell(*arm, i, name)
            drawn[ERROR, cell] = percent(few, errors, at)
            drawn["accuracy", cell] = accuracy = percent(draws, shares, at)
            if answers[at[0]].agreed is None:
                continue
            same, lost, gained = percent(some, agreements, at).T
            cases = same, _some(accuracy) - gained, lost, gained
            for what, samples in zip(Agreement._fields, cases, strict=True):
                drawn[what, cell] = samples
        return drawn

    blocks = [
        (name, keys[start : start + BLOCK])
        for name, bank in banks.items()
        for keys in [list(bank.correct)]
        for start in range(0, len(keys), BLOCK)
    ]
    return dict(itertools.chain.from_iterable(d.items() for d in parallel.each(block, blocks)))


def _some(samples: np.ndarray) -> np.ndarray:
    """The first of an accuracy's draws: those that agreement has."""
    return samples[: max(FEWEST, len(samples) // SOME)]


def _add_robustness(
    drawn: Drawn, known: Collection[Cell], sets: Sequence[str], upstream: str
) -> None:
    """Draws of effective robustness; where a draw has no trend line, it is left out."""
    for cells, fit in behaviour.trends(known, sets, upstream).values():
        if fit.sum() < behaviour.MODELS_FOR_A_TREND:
            continue
        x, y = (
            np.stack([_some(drawn["accuracy", cell]) for cell in some], axis=1)
            for some in ([behaviour.at(cell, upstream) for cell in cells], cells)
        )
        found = behaviour.heights(x, y, fit)
        drawn |= {(ROBUSTNESS, cell): values for cell, values in zip(cells, found.T, strict=True)}


def _means(
    drawn: Drawn, values: Mapping[tuple[str, Cell], float], cells: Sequence[Cell], on: str
) -> list[Interval]:
    """A row for each arm and quantity that all of the arm's cells have: the mean over them."""
    of: dict[Arm, list[Cell]] = {}
    for cell in cells:
        of.setdefault(cell.arm, []).append(cell)
    rows = []
    for arm, of_arm in of.items():
        for name in dict.fromkeys(name for name, _ in values):
            if all((name, cell) in values for cell in of_arm):
                samples = np.mean([drawn[name, cell] for cell in of_arm], axis=0)
                value = fmean(values[name, cell] for cell in of_arm)
                rows.append((name, Cell(*arm, "", on), value, samples))
    return _rows(rows)


def _rows(numbers: Sequence[tuple[str, Cell, float, np.ndarray]]) -> list[Interval]:
    """Intervals of numbers from their draws [B], which are NaN where there are none."""

    def row(number: tuple[str, Cell, float, np.ndarray]) -> Interval:
        name, cell, value, samples = number
        samples = samples[~np.isnan(samples)]
        low, high, error = bootstrap.ends(samples)
        if name in SHARES:
            low, high = (min(max(end, 0.0), 100.0) for end in (low, high))
        return Interval(*cell.key, name, value, low, high, error)

    return parallel.each(row, numbers)


def _ri(drawn: Drawn, arm: Arm, downstream: str, sets: Sequence[str]) -> np.ndarray:
    changes = [
        drawn["accuracy", Cell(*arm, downstream, name)]
        - drawn["accuracy", Cell(*arm.before, "", name)]
        for name in sets
        if name != downstream
    ]
    return np.mean(changes, axis=0)
