"""The record of a finished campaign: all that its tables and report are made from.

The record is a file next to the plan. It names the stored predictions of every evaluation with
their checksums, and contains everything else that a report shows. It contains no absolute paths, so
a runs folder can be moved. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.campaigns.job_states import Attempt
from engine.campaigns.plan import Plan, read_plan
from engine.campaigns.plan_folder import PlanFolder
from engine.measures.rows import Diverged, Evaluation, Setting
from engine.store.artifacts import hash_once
from loaders.files import typed_json
from loaders.files.names import InnerPath, Name, one_line
from loaders.files.typed_json import DamagedFile

if TYPE_CHECKING:
    from engine.measures.predictions import Ensemble


@dataclass(frozen=True)
class MissingColumn:
    """A column that a report lacks, and why.

    campaign: its name, in reports of several campaigns.
    """

    column: str
    reason: str
    campaign: str = ""


@dataclass(frozen=True)
class MethodRow:
    """A row of the table. method: its key. settings: its training settings, by recipe key:
    `method.*`, `optimizer.*`, `train.*`, `dataset.shots`, `dataset.fraction` and `seeds`. trials:
    the values of each trial that differ from the settings; empty without trials."""

    method: str
    settings: dict[str, Any]
    trials: list[Setting] = field(default_factory=list)


HEAD_PHOTOS = "Head's photos"  # the setting that says where models are judged on them


@dataclass(frozen=True)
class MadeBy:
    """The code, versions and device that made some artefacts (`engine.store.made_by.here`)."""

    values: dict[str, str]
    artifacts: int


@dataclass(frozen=True)
class Record:
    """A campaign's evaluations and settings. Paths are relative to the store.

    Attributes:
        name: the campaign.
        benchmark, version: the benchmark's name and version (`DatasetRecipe`).
        sets: datasets on which RI is measured.
        downstreams: datasets that models were fine-tuned on.
        evaluate_on: further datasets that models were evaluated on, outside RI.
        upstream: the upstream dataset.
        methods: the rows' titles by key, in table order.
        settings: settings of the whole campaign, by the report's heading.
        rows: training settings of each row.
        credits: sources and licences of the images.
        contact_sheet: example images as a PNG in base64, or empty.
        holdout: whether downstream datasets have a held-out split.
        distances: `otdd.distance_matrix.Matrix.plain` between datasets, or None.
        evaluations: every model on every dataset, in all roles.
        files: SHA-256 of each file of predictions, by path.
        extras: the rows that each extra adds (`engine.extras.base.OnSet`).
        sweep: settings of a sweep, in order; None for other campaigns.
        classes: readable names of the head's classes, in order.
        thumbnails: WebP images in base64, by dataset and index in its pack, if
            `dataset.thumbnails` allows showing them.
        attempts: attempts at all jobs except the report's.
        missing: columns that an unfinished campaign lacks.
        artifacts: store folders from which the numbers and the rows' models are made.
        made_by: the code and versions that made these artefacts; one entry unless they differ.
        makers: datasets by maker (`dataset.makers`).
        samples_seen: `model.samples_seen` by model, where it is known.
        train_seconds: by method, the seconds of training one model, averaged over downstream
            datasets, settings and seeds; with the trainings of models that it averages.
        limit: images per dataset in a smoke run; 0 for other campaigns.
        diverged: trainings that diverged in a setting that the campaign tries. No evaluation is of
            such a method and setting, on any downstream dataset.
    """

    name: str
    benchmark: str
    version: int
    sets: list[Name]
    downstreams: list[Name]
    upstream: Name | None
    methods: dict[Name, str]
    settings: dict[str, Any]
    rows: list[MethodRow]
    credits: list[dict[str, str]]
    contact_sheet: str
    holdout: bool
    distances: dict[str, Any] | None
    evaluations: list[Evaluation]
    files: dict[InnerPath, str]
    extras: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sweep: list[Setting] | None = None
    classes: list[str] = field(default_factory=list)
    thumbnails: dict[str, dict[str, str]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    missing: list[MissingColumn] = field(default_factory=list)
    artifacts: list[InnerPath] = field(default_factory=list)
    made_by: list[MadeBy] = field(default_factory=list)
    makers: dict[str, list[str]] = field(default_factory=dict)
    train_seconds: dict[Name, float] = field(default_factory=dict)
    limit: int = 0
    evaluate_on: list[Name] = field(default_factory=list)
    diverged: list[Diverged] = field(default_factory=list)
    samples_seen: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FinishedCampaign:
    """A record and the folder of its plan (`place`)."""

    record: Record
    place: PlanFolder

    @functools.cached_property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations with absolute paths. Raises DamagedFile for a missing or altered file."""
        rows = self.record.evaluations
        names = dict.fromkeys(str(row.path) for row in rows)
        paths = {name: self._checked(name) for name in names}
        return [dataclasses.replace(row, path=paths[str(row.path)]) for row in rows]

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan."""
        return read_plan(self.place)

    def mix(self, evaluation: Evaluation) -> dict[str, float] | Ensemble:
        """The average of cells that is the model of an evaluation."""
        from engine.measures import predictions  # late: planning reads no numbers

        return predictions.mix_of(self._checked(str(evaluation.path)))

    @functools.cache  # noqa: B019  # a campaign lives as long as its process
    def _checked(self, name: str) -> Path:
        return checked_file(self.place, name, self.record.files.get(name))


def checked_file(place: PlanFolder, name: str, sha256: str | None) -> Path:
    """The path of a file of the store. Raises DamagedFile if it is missing or has another hash."""
    path = place.store / name
    if not place.store_root.has(name):
        raise DamagedFile(f"{path} is missing: {place.remedy}")
    if hash_once(path) != sha256:
        raise DamagedFile(
            f"{path} was changed since the campaign evaluated it: delete {path.parent} and "
            f"{place.remedy}"
        )
    return path


def write_record(place: PlanFolder, record: Record) -> FinishedCampaign:
    """Write a record into a plan's folder, with a digest of its content."""
    place.root.write(place.record, typed_json.with_digest(dataclasses.asdict(record)))
    return read_record(place)


def read_record(place: PlanFolder) -> FinishedCampaign:
    """Read the record in a plan's folder. Control characters in its texts are escaped.

    Raises DamagedFile if it was altered, FileNotFoundError if it is missing.
    """
    remedy = f"delete it and {place.remedy}"
    values = one_line(typed_json.read_unaltered(place.record, remedy, place.root))
    return FinishedCampaign(typed_json.convert(values, Record, place.record, remedy), place)
