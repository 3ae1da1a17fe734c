"""The parts of a campaign's record: each job that computes something writes one as its last act.

A part is a file next to the plan, named after its job. A job that was killed leaves none. Imports
no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from engine.campaigns.plan_folder import PlanFolder
from engine.measures.rows import PRE, Diverged, Evaluation
from loaders.files import typed_json
from loaders.files.names import InnerPath, Name, one_line

FOLDER = "record"  # next to a plan
REMEDY = "run `rib campaign` again with the same arguments, which makes it anew"


@dataclass(frozen=True)
class Models:
    """Models and their evaluations. Paths are relative to the store.

    Attributes:
        evaluations: every model on every dataset, in all roles.
        files: SHA-256 of each file of predictions, by path.
        cells: by method, the folders of its cells and of the cells that they average, without
            snapshots, whose weights are removed after evaluation.
        train_seconds: by method, the seconds of training its cells and those that they average.
        extras: rows of each extra, as in the record.
        diverged: as in the record.
    """

    evaluations: list[Evaluation]
    files: dict[InnerPath, str]
    cells: dict[str, list[InnerPath]]
    train_seconds: dict[str, float] = field(default_factory=dict)
    extras: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    diverged: list[Diverged] = field(default_factory=list)

    def __post_init__(self) -> None:
        lacking = {row.path.as_posix() for row in self.evaluations} - self.files.keys()
        methods = {row.method for row in self.evaluations if row.method != PRE}
        lacking |= methods - self.cells.keys()
        if lacking:
            raise ValueError(f"nothing is said of {min(lacking)}")


@dataclass(frozen=True)
class Preparation:
    """What the preparation knows: the pretrained model, the datasets and the machine.

    Attributes:
        before: the pretrained model on every dataset.
        head: what fitted the head, or empty if the weights include it.
        head_photos: in which datasets models are judged on photos that fitted the head, or empty.
        classes: readable names of the head's classes, in order.
        device: device of all jobs.
        versions: of packages that affect results.
        commit: of the engine.
        packs: the packs' folders, relative to the runs folder, by evaluated dataset.
        fingerprints: of the packs of all datasets that the campaign reads.
        credits, contact_sheet: as in the record.
    """

    before: Models
    head: str
    head_photos: str
    classes: list[str]
    device: str
    versions: dict[str, str]
    commit: str
    packs: dict[Name, InnerPath]
    fingerprints: dict[Name, str]
    credits: list[dict[str, str]]
    contact_sheet: str

    def __post_init__(self) -> None:
        if lacking := self.packs.keys() - self.fingerprints.keys():
            raise ValueError(f"nothing is said of {min(lacking)}")


@dataclass(frozen=True)
class Distances:
    """Distances between all datasets (`Record.distances`), or None if they cannot be computed."""

    matrix: dict[str, Any] | None


def select_rows(part: Models, names: Collection[str]) -> Models:
    """A part with these of its rows alone."""
    evaluations = [row for row in part.evaluations if row.method in names]
    paths = {row.path.as_posix() for row in evaluations}
    return Models(
        evaluations=evaluations,
        files={name: sha256 for name, sha256 in part.files.items() if name in paths},
        cells={name: part.cells[name] for name in names},
        train_seconds={k: v for k, v in part.train_seconds.items() if k in names},
        extras={
            extra: [row for row in rows if row["method"] in names]
            for extra, rows in part.extras.items()
        },
        diverged=[row for row in part.diverged if row.method in names],
    )


Part = Models | Preparation | Distances
P = TypeVar("P", Models, Preparation, Distances)


def write_part(place: PlanFolder, job: str, part: Part) -> None:
    """Write the part of a job into a plan's folder, with a digest of its content."""
    place.root.write(_name(job), typed_json.with_digest(dataclasses.asdict(part)))


def has_part(place: PlanFolder, job: str) -> bool:
    """Whether a job of the plan in the folder `place` has written its part."""
    return place.root.has(_name(job))


def read_part(place: PlanFolder, job: str, kind: type[P]) -> P:
    """Read the part of a job.

    Raises FileNotFoundError if it is missing, DamagedFile if it was altered.
    """
    if not has_part(place, job):
        raise FileNotFoundError(f"{place.path / _name(job)} is missing: {REMEDY}")
    path = place.path / _name(job)
    values = one_line(typed_json.read_unaltered(path, REMEDY, place.root))
    return typed_json.convert(values, kind, path, REMEDY)


def remove_part(place: PlanFolder, job: str) -> None:
    """Remove the part of a job that runs again."""
    place.root.remove(_name(job))


def _name(job: str) -> str:
    return f"{FOLDER}/{job}.json"
