"""From stored predictions to accuracy, RI and mRI: the arithmetic of the benchmark.

Evaluation keeps one row an image for every model, so every number of a report can be computed,
checked and re-sampled later without a GPU. This module is that step, and needs no torch.

ImageNet-RIB's definitions, with n downstream sets and A_i^(j) the accuracy in percent on set j of
the model fine-tuned on set i: RI_i = 1/(n-1) sum_{j != i} (A_i^(j) - A_pre^(j)), and mRI is the
mean of RI_i over i. Each set is left out once, so the mean OOD accuracy after fine-tuning,
mean_i 1/(n-1) sum_{j != i} A_i^(j), is mRI + mean_j A_pre^(j). Of cells that were trained with
several seeds, A_i^(j) is the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from engine.measures import behaviour, bootstrap, parallel, rows
from engine.measures.answers import Answers
from engine.measures.predictions import Bank, Seen
from engine.measures.rows import PRE, Accuracy, Arm, Behaviour, Cell, Evaluation, Mri, SeedAccuracy

RESAMPLES = 1000  # at first, and where nobody asks for more
MOST = 1 << 16  # draws that are in memory at a time
DIGIT = 0.1  # points: what tables print, and so what ends of intervals are drawn to
NOT_KNOWN = rows.Agreement(None, None, None, None)
Key = tuple[Arm, str]  # arm and downstream set


@dataclass(frozen=True)
class Summary:
    """Everything a report shows; `missing` says, a sentence an arm, what a partial grid lacks.

    `by_seed` is empty unless cells were trained with several seeds.
    """

    accuracy: tuple[Accuracy, ...]
    mri: tuple[Mri, ...]
    missing: tuple[str, ...] = ()
    by_seed: tuple[SeedAccuracy, ...] = ()


@dataclass(frozen=True)
class Gathered:
    """A grid's predictions, read and checked once, and reduced to what all statistics start from.

    `own_banks` hold cells on the set that they were trained on: RI never uses them, and they may
    see a hold-out only.
    """

    accuracy: tuple[Accuracy, ...]
    behaviour: tuple[Behaviour, ...]
    by_seed: tuple[SeedAccuracy, ...]
    seeds: tuple[int, ...]
    banks: Mapping[str, Bank[Key]]
    own_banks: Mapping[str, Bank[Key]]
    answers: Mapping[Cell, Mapping[int, Answers]]  # by seed, in the rows of the cell's bank


def gather(evaluations: Sequence[Evaluation]) -> Gathered:
    """Read every evaluation once; rows come in the order of the evaluations.

    Raises ValueError for duplicates, cells that lack a seed that others have, arms that are the
    headline on some sets only, unreadable or NaN predictions, and evaluations of one set that saw
    different images.
    """
    seeds = _check_cells(evaluations)
    headline = _headlines(evaluations)
    on: dict[str, list[Evaluation]] = {}
    for cell in evaluations:
        on.setdefault(cell.evaluated_on, []).append(cell)
    banks: dict[str, Bank[Key]] = {}
    own_banks: dict[str, Bank[Key]] = {}
    answers: dict[Cell, dict[int, Answers]] = {}
    found: dict[Cell, list[tuple[SeedAccuracy, Behaviour]]] = {c.place: [] for c in evaluations}
    for name, seen in zip(on, parallel.each(_seen, on.values()), strict=True):
        for kept, bank in ((banks, seen.bank), (own_banks, seen.own_bank)):
            if bank.first is not None:
                kept[name] = bank
        for cell, said, numbers in seen.cells:
            answers.setdefault(cell.place, {})[cell.seed] = said
            found[cell.place].append(numbers)
    by_seed = [row for several in found.values() for row, _ in several]
    accuracy = [
        Accuracy(
            *cell.key,
            several[0][0].n,
            fmean(row.accuracy for row, _ in several),
            headline[cell.arm],
        )
        for cell, several in found.items()
    ]
    behaviours = tuple(_mean([row for _, row in several]) for several in found.values())
    return Gathered(tuple(accuracy), behaviours, tuple(by_seed), seeds, banks, own_banks, answers)


def summarise(
    evaluations: Sequence[Evaluation] | Gathered,
    sets: Sequence[str],
    *,
    partial: bool = False,
    seed: int = 0,
) -> Summary:
    """Accuracies, and mRI over `sets` with intervals (the population meant: `bootstrap`). There are
    so many draws that Monte-Carlo error leaves a `DIGIT` of their ends, or `MOST`.

    Sets evaluated on but not among `sets` (the upstream set) are reported, never part of RI.
    An arm that lacks a whole downstream column is refused, or with `partial` left out of mRI
    and named in `missing`. Raises ValueError for that, holes within a column, and all that
    `gather` refuses.
    """
    if len(sets) < 2 or len(set(sets)) != len(sets):
        raise ValueError(f"RI needs two or more distinct downstream sets, got {list(sets)}")
    grid = evaluations if isinstance(evaluations, Gathered) else gather(evaluations)
    ri = improvements(grid.accuracy, sets)
    missing = tuple(
        f"{arm} was not fine-tuned on {', '.join(name for name in sets if name not in columns)}"
        for arm, columns in ri.items()
        if len(columns) < len(sets)
    )
    if missing and not partial:
        raise ValueError(
            f"the grid is incomplete: {'; '.join(missing)}. "
            "Finish the campaign, or ask for a partial table"
        )
    arms = [arm for arm, columns in ri.items() if len(columns) == len(sets)]
    mri = []
    if arms:
        headline = {row.arm: row.headline for row in grid.accuracy}
        drawn = bootstrap.until(
            lambda start, stop: mri_draws(grid, arms, sets, start, stop, seed),
            lambda drawn: is_known(bootstrap.ends(samples).error for samples in drawn.T),
            first=RESAMPLES,
            most=MOST,
        )
        for arm, samples in zip(arms, drawn.T, strict=True):
            value = math.fsum(ri[arm].values()) / len(sets)
            mri.append(Mri(*arm, value, *bootstrap.ends(samples), headline[arm]))
    return Summary(grid.accuracy, tuple(mri), missing, grid.by_seed if len(grid.seeds) > 1 else ())


def improvements(accuracy: Iterable[Accuracy], sets: Sequence[str]) -> dict[Arm, dict[str, float]]:
    """RI in points per arm and downstream set; columns that were not run are left out.

    Raises ValueError, naming the cell, where a model in use was not evaluated on one of `sets`.
    """
    grid: dict[Arm, dict[str, dict[str, float]]] = {}
    for row in accuracy:
        grid.setdefault(row.arm, {}).setdefault(row.downstream, {})[row.evaluated_on] = row.accuracy
    before = {arm.model: columns[""] for arm, columns in grid.items() if arm.method == PRE}
    out: dict[Arm, dict[str, float]] = {}
    for arm, columns in grid.items():
        run = [name for name in sets if name in columns]
        if arm.method == PRE or not run:
            continue
        _check_evaluated(f"{arm.model} {PRE}", before.get(arm.model, {}), sets)
        for downstream in run:
            _check_evaluated(f"{arm} fine-tuned on {downstream}", columns[downstream], sets)
        out[arm] = {
            name: robustness_improvement(name, columns[name], before[arm.model], sets)
            for name in run
        }
    return out


def robustness_improvement(
    downstream: str, after: Mapping[str, float], before: Mapping[str, float], sets: Sequence[str]
) -> float:
    """RI of one fine-tuned model: its mean change in accuracy over the other sets (points)."""
    others = [name for name in sets if name != downstream]
    return math.fsum(after[name] - before[name] for name in others) / len(others)


def is_known(errors: Iterable[float]) -> bool:
    """Whether Monte-Carlo standard errors leave a `DIGIT` of what they are of."""
    return max(errors, default=0.0) <= DIGIT / 2


def settled_draws(banks: Mapping[str, Bank[Any]], columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draws [B, K] of means in percent, set after set, of columns as `bootstrap.means` takes them.

    So many that Monte-Carlo error leaves a `DIGIT` of their intervals' ends, or `MOST`.
    """

    def draw(start: int, stop: int) -> np.ndarray:
        drawn = bootstrap.means(banks, columns, resamples=stop, seed=0, start=start)
        return 100 * np.concatenate(list(drawn.values()), axis=1)

    return bootstrap.until(
        draw,
        lambda drawn: is_known(bootstrap.ends(samples).error for samples in drawn.T),
        first=RESAMPLES,
        most=MOST,
    )


def change_draws(
    grid: Gathered, arms: Sequence[Arm], sets: Sequence[str], start: int, stop: int, seed: int
) -> np.ndarray:
    """Joint bootstrap draws [B, sets, arms], `start` to `stop`, of what each set adds to mRI, in
    points.

    Their sum over the sets is mRI; n times one of them is the mean change on that set, over the
    n - 1 models trained elsewhere. mRI is linear in each set's sums per source, hence one matrix
    product a set.
    """
    columns = {name: _changes(grid, name, arms, sets) for name in sets}
    drawn = bootstrap.means(grid.banks, columns, resamples=stop, seed=seed, start=start)
    return np.stack(list(drawn.values()), axis=1)


def mri_draws(
    grid: Gathered, arms: Sequence[Arm], sets: Sequence[str], start: int, stop: int, seed: int
) -> np.ndarray:
    """Draws [B, arms] of mRI: those of `change_draws`, summed over the sets. Sets that hold equally
    many images of the same sources share a matrix product."""
    columns: dict[str, np.ndarray] = {}
    for name in sets:
        same = next((other for other in columns if _alike(grid, name, other)), name)
        columns[same] = columns.get(same, 0) + _changes(grid, name, arms, sets)
    drawn = bootstrap.means(grid.banks, columns, resamples=stop, seed=seed, start=start)
    return np.sum(list(drawn.values()), axis=0)


def _alike(grid: Gathered, name: str, other: str) -> bool:
    """Whether two sets hold equally many images of the same sources."""
    one, two = grid.banks[name], grid.banks[other]
    return np.array_equal(one.sources, two.sources) and np.array_equal(one.total, two.total)


def _changes(grid: Gathered, name: str, arms: Sequence[Arm], sets: Sequence[str]) -> np.ndarray:
    """(seeds, sources, arms) change on set `name` summed over the models trained elsewhere."""
    bank, seeds = grid.banks[name], grid.seeds
    others = [downstream for downstream in sets if downstream != name]
    changes = [
        np.sum([bank.sums((arm, i), seeds) for i in others], axis=0)
        - len(others) * bank.sums((arm.before, ""), seeds)
        for arm in arms
    ]
    return np.stack(changes, axis=-1) * (100 / (len(sets) * len(others)))


def write_csv(folder: Path, summary: Summary) -> tuple[Path, ...]:
    """Write `accuracy.csv`, `mri.csv` and, where there are several seeds, `seeds.csv`."""
    paths = [
        rows.write(folder / "accuracy.csv", Accuracy, summary.accuracy),
        rows.write(folder / "mri.csv", Mri, summary.mri),
    ]
    if summary.by_seed:
        paths.append(rows.write(folder / "seeds.csv", SeedAccuracy, summary.by_seed))
    return tuple(paths)


class _Seen(NamedTuple):
    """A set's evaluations: the banks of `Gathered`, and what was said by each cell and seed."""

    bank: Bank[Key]
    own_bank: Bank[Key]
    cells: list[tuple[Evaluation, Answers, tuple[SeedAccuracy, Behaviour]]]


def _seen(evaluations: Sequence[Evaluation]) -> _Seen:
    """Read all evaluations of one set."""
    found = _Seen(Bank(), Bank(), [])
    before: dict[str, Seen] = {}
    for cell in sorted(evaluations, key=lambda cell: cell.method != PRE):
        bank = found.own_bank if cell.on_its_own else found.bank
        seen = bank.add((cell.arm, cell.downstream), cell.path, cell.seed, cell.model)
        start = before.get(cell.model)
        if cell.method == PRE:
            before[cell.model] = seen
        elif cell.on_its_own and start and not bank.saw_the_same(found.bank):
            start = None
        accuracy = SeedAccuracy(*cell.key, cell.seed, len(seen.label), seen.accuracy)
        error = behaviour.calibration_error(seen)
        changed = Behaviour(*cell.key, *_agreement(start, seen), error)
        found.cells.append((cell, Answers.of(bank, start, seen), (accuracy, changed)))
    return found


def _agreement(before: Seen | None, after: Seen) -> rows.Agreement:
    return NOT_KNOWN if before is None else behaviour.agreement(before, after)


def _mean(several: Sequence[Behaviour]) -> Behaviour:
    """The mean over seeds."""
    columns = zip(*(row.agreement for row in several), strict=True)
    means = rows.Agreement(*(None if None in column else fmean(column) for column in columns))
    error = fmean(row.calibration_error for row in several)
    return Behaviour(*several[0].key, *means, error)


def _check_cells(evaluations: Sequence[Evaluation]) -> tuple[int, ...]:
    """The seeds that every cell was trained with."""
    seen: dict[Cell, dict[int, Path]] = {}
    for cell in evaluations:
        pre = cell.method == PRE
        if pre != (cell.downstream == ""):
            raise ValueError(
                f"{cell.arm} on {cell.evaluated_on}: an empty downstream is for the pre-trained "
                f"model (method '{PRE}'), and only for it"
            )
        if pre and (cell.arm != cell.arm.before or cell.seed):
            raise ValueError(f"{cell}: the pre-trained model has no variant, alpha or seed")
        paths = seen.setdefault(cell.place, {})
        if cell.seed in paths:
            raise ValueError(f"{cell.place} is given twice: {paths[cell.seed]} and {cell.path}")
        paths[cell.seed] = cell.path
    trained = {cell: set(paths) for cell, paths in seen.items() if cell.method != PRE}
    seeds = sorted(set[int]().union(*trained.values())) or [0]
    for cell, own in trained.items():
        if lacking := set(seeds) - own:
            raise ValueError(
                f"{cell} lacks seed {', '.join(map(str, sorted(lacking)))}, which others have: "
                "train it with the same seeds"
            )
    return tuple(seeds)


def _headlines(evaluations: Sequence[Evaluation]) -> dict[Arm, bool]:
    """By arm, whether tables show it."""
    headline: dict[Arm, bool] = {}
    for cell in evaluations:
        if headline.setdefault(cell.arm, cell.headline) != cell.headline:
            raise ValueError(
                f"{cell.arm} is the headline of its method for some sets or seeds only: a table's "
                "row shows one alpha, so name the same one as headline for all of them"
            )
    return headline


def _check_evaluated(name: str, cells: Mapping[str, float], sets: Sequence[str]) -> None:
    if holes := [other for other in sets if other not in cells]:
        raise ValueError(f"{name} was not evaluated on {', '.join(holes)}: evaluate it there first")
