"""From stored predictions to accuracy, RI and mRI: the arithmetic of the benchmark.

Evaluation keeps one row an image for every model, so every number of a report can be computed,
checked and re-sampled later without a GPU. This module is that step, and needs no torch.

ImageNet-RIB's definitions, with n downstream sets and A_i^(j) the accuracy in percent on set j of
the model fine-tuned on set i: RI_i = 1/(n-1) sum_{j != i} (A_i^(j) - A_pre^(j)), and mRI is the
mean of RI_i over i. Each set is left out once, so the mean OOD accuracy after fine-tuning,
mean_i 1/(n-1) sum_{j != i} A_i^(j), is mRI + mean_j A_pre^(j).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine import artifacts, predictions

PRE = "pre"
DRAWS_PER_CHUNK = 1 << 24


class Arm(NamedTuple):
    """What is compared: one method, in one variant, on one pre-trained model."""

    model: str
    method: str
    variant: str
    alpha: float | None

    def __str__(self) -> str:
        alpha = "" if self.alpha is None else f" alpha={self.alpha:g}"
        return f"{self.model} {self.method}{alpha}" + (f" ({self.variant})" if self.variant else "")


@dataclass(frozen=True)
class Cell:
    """One model seen on one set; `downstream` is empty for the pre-trained model (`PRE`)."""

    model: str
    method: str
    variant: str
    alpha: float | None
    downstream: str
    evaluated_on: str

    @property
    def arm(self) -> Arm:
        return Arm(self.model, self.method, self.variant, self.alpha)


@dataclass(frozen=True)
class Evaluation(Cell):
    """A cell and the file or folder of its predictions (columns: `predictions.read`)."""

    path: Path


@dataclass(frozen=True)
class Accuracy(Cell):
    """Top-1 accuracy of a cell in percent, over `n` images."""

    n: int
    accuracy: float


@dataclass(frozen=True)
class Mri:
    """mRI of an arm in points of accuracy, and its 95% interval over source images."""

    model: str
    method: str
    variant: str
    alpha: float | None
    mri: float
    mri_low: float
    mri_high: float

    @property
    def arm(self) -> Arm:
        return Arm(self.model, self.method, self.variant, self.alpha)


@dataclass(frozen=True)
class Summary:
    """Everything a report shows; `missing` says, a sentence an arm, what a partial grid lacks."""

    accuracy: tuple[Accuracy, ...]
    mri: tuple[Mri, ...]
    missing: tuple[str, ...] = ()


def summarise(
    evaluations: Sequence[Evaluation],
    sets: Sequence[str],
    *,
    partial: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Summary:
    """Read every evaluation once; return accuracies, and mRI with intervals over `sets`.

    Sets evaluated on but not among `sets` (the upstream set) are reported, never part of RI.
    An arm that lacks a whole downstream column is refused, or with `partial` left out of mRI
    and named in `missing`. Raises ValueError for duplicates, holes within a column, unreadable
    or NaN predictions, and evaluations of one set that saw different images.
    """
    if len(sets) < 2 or len(set(sets)) != len(sets):
        raise ValueError(f"RI needs two or more distinct downstream sets, got {list(sets)}")
    _check_cells(evaluations)
    banks: dict[str, predictions.Bank] = {}
    own_banks: dict[str, predictions.Bank] = {}  # RI never uses them, and they may see a hold-out
    rows = []
    for cell in evaluations:
        side = own_banks if cell.downstream == cell.evaluated_on else banks
        bank = side.setdefault(cell.evaluated_on, predictions.Bank())
        n, accuracy = bank.add((cell.arm, cell.downstream), cell.path)
        shared = [getattr(cell, field.name) for field in fields(Cell)]
        rows.append(Accuracy(*shared, n=n, accuracy=accuracy))
    ri = improvements(rows, sets)
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
    ends = _intervals(banks, arms, sets, resamples=resamples, seed=seed)
    mri = [
        Mri(*arm, math.fsum(ri[arm].values()) / len(sets), float(low), float(high))
        for arm, (low, high) in zip(arms, ends, strict=True)
    ]
    return Summary(tuple(rows), tuple(mri), missing)


def improvements(rows: Iterable[Accuracy], sets: Sequence[str]) -> dict[Arm, dict[str, float]]:
    """RI in points per arm and downstream set; columns that were not run are left out.

    Raises ValueError, naming the cell, where a model in use was not evaluated on one of `sets`.
    """
    grid: dict[Arm, dict[str, dict[str, float]]] = {}
    for row in rows:
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


def write_csv(folder: Path, summary: Summary) -> tuple[Path, Path]:
    """Write `accuracy.csv` and `mri.csv` atomically: percent and points, six decimals."""

    def write(path: Path, kind: type, rows: Sequence[Accuracy | Mri]) -> Path:
        names = [field.name for field in fields(kind)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_plain(getattr(row, name)) for name in names] for row in rows)
        artifacts.write_atomic(path, text.getvalue().encode())
        return path

    return (
        write(folder / "accuracy.csv", Accuracy, summary.accuracy),
        write(folder / "mri.csv", Mri, summary.mri),
    )


def _plain(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


def _check_cells(evaluations: Sequence[Evaluation]) -> None:
    seen: dict[str, Path] = {}
    for cell in evaluations:
        pre = cell.method == PRE
        if pre != (cell.downstream == ""):
            raise ValueError(
                f"{cell.arm} on {cell.evaluated_on}: an empty downstream is for the pre-trained "
                f"model (method '{PRE}'), and only for it"
            )
        name = f"{cell.model} {PRE}" if pre else f"{cell.arm} fine-tuned on {cell.downstream}"
        name += f", evaluated on {cell.evaluated_on}"
        if name in seen:
            raise ValueError(f"{name} is given twice: {seen[name]} and {cell.path}")
        seen[name] = cell.path


def _check_evaluated(name: str, cells: Mapping[str, float], sets: Sequence[str]) -> None:
    if holes := [other for other in sets if other not in cells]:
        raise ValueError(f"{name} was not evaluated on {', '.join(holes)}: evaluate it there first")


def _intervals(
    banks: Mapping[str, predictions.Bank],
    arms: Sequence[Arm],
    sets: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> np.ndarray:
    """(arms, 2) ends of the 95% percentile-bootstrap interval of mRI, in points.

    Sources are drawn with replacement, jointly for all sets, arms and the pre-trained model:
    copies of one source in several sets rise and fall together, and changes stay paired. Sources
    that occur in the same sets form a stratum and are drawn on their own, so no set comes out
    empty. mRI is linear in each set's sums per source, hence one matrix product a set.
    """
    if not arms:
        return np.empty((0, 2))
    sources = np.unique(np.concatenate([banks[name].sources for name in sets]))
    rows = {name: np.searchsorted(sources, banks[name].sources) for name in sets}
    member = np.zeros((len(sources), len(sets)), bool)
    for j, name in enumerate(sets):
        member[rows[name], j] = True
    stratum = np.unique(member, axis=0, return_inverse=True)[1].ravel()
    changes = {name: _changes(banks[name], name, arms, sets) for name in sets}

    rng = np.random.default_rng(seed)
    step = max(1, DRAWS_PER_CHUNK // len(sources))
    samples = np.zeros((resamples, len(arms)))
    for start in range(0, resamples, step):
        chunk = samples[start : start + step]
        counts = np.empty((len(chunk), len(sources)))
        for value in range(stratum.max() + 1):
            members = np.flatnonzero(stratum == value)
            counts[:, members] = _draw(rng, len(chunk), len(members))
        for name in sets:
            drawn = counts[:, rows[name]]
            chunk += (drawn @ changes[name]) / (drawn @ banks[name].total)[:, None]
    return np.quantile(samples, (0.025, 0.975), axis=0).T


def _changes(
    bank: predictions.Bank, name: str, arms: Sequence[Arm], sets: Sequence[str]
) -> np.ndarray:
    """(sources, arms) change on set `name` summed over the models trained elsewhere, scaled so
    that the sets' sums, each over its total weight, add up to mRI."""
    before = {arm.model: sums for (arm, _), sums in bank.correct.items() if arm.method == PRE}
    others = [downstream for downstream in sets if downstream != name]
    columns = [
        np.sum([bank.correct[arm, i] for i in others], axis=0) - len(others) * before[arm.model]
        for arm in arms
    ]
    return np.stack(columns, axis=1) * (100 / (len(sets) * len(others)))


def _draw(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """(rows, size) how often each of `size` sources comes up in `size` draws."""
    drawn = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
