"""The record of a finished campaign, from which its tables and report can be made again.

A file next to the plan names the predictions of every evaluation in the store, with checksums, and
contains everything else that a report shows. It contains no absolute path, so that a folder of runs
can be moved. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import CampaignError
from engine.grid import campaign, plan_folder
from engine.grid.attempts import Attempt
from engine.grid.plan_folder import PlanFolder
from engine.measures.rows import Evaluation
from engine.measures.setting import Setting
from engine.recipe.overrides import Override
from engine.store.artifacts import hash_once
from loaders import schema
from loaders.names import InnerPath, Name
from loaders.schema import DamagedFile

if TYPE_CHECKING:
    from engine.measures.distances import Matrix
    from engine.measures.predictions import Ensemble

AS_BEFORE = "with the words of before"


@dataclass(frozen=True)
class MissingColumn:
    """A column that a report lacks, and why. campaign: only in a report of several."""

    column: str
    reason: str
    campaign: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the table, by its method's key, and what it trains with, by key of its recipe:
    `method.*`, `optimizer.*`, `train.*`, `seeds`, and the part of a training set."""

    method: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A grid's evaluations and settings; paths are relative to the store.

    sets: those that RI is measured on. downstreams: those fine-tuned on. methods: key to title, in
    table order. settings: what the page shows of all rows, by heading. probe: evaluations of
    columns that were trained a second time, with another seed. files: SHA-256 of each path.
    contact_sheet: a PNG in base64, or empty. cka: a row a headline arm, set trained on, seed and
    set evaluated on, with CKA by block; None without `evaluate.cka`. sweep: the settings of a
    sweep, in order; None of other campaigns. classes: of the head, in order, by names for people.
    thumbnails: WebP files in base64 by set, where its images may be shown (`dataset.thumbnails`),
    and place of the image in its pack. attempts: at the campaign's jobs but the report's. missing:
    columns that are not in it, of a campaign that has not finished. artifacts: folders of the store
    that the numbers and the rows' models are made of. families: by maker, sets
    (`dataset.families`). seen: evaluations of models on photos that they were trained on in another
    set, and of the pre-trained model on all photos that are trained on (`leak`). limit: images of
    each set that a smoke run has; 0 of other campaigns.
    """

    name: str
    sets: list[Name]
    downstreams: list[Name]
    upstream: Name
    methods: dict[Name, str]
    settings: dict[str, Any]
    rows: list[Row]
    credits: list[dict[str, str]]
    contact_sheet: str
    holdout: bool
    distances: dict[str, Any] | None
    evaluations: list[Evaluation]
    files: dict[InnerPath, str]
    probe: list[Evaluation] = field(default_factory=list)
    cka: list[dict[str, Any]] | None = None
    sweep: list[Setting] | None = None
    classes: list[str] = field(default_factory=list)
    thumbnails: dict[str, dict[str, str]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    missing: list[MissingColumn] = field(default_factory=list)
    artifacts: list[InnerPath] = field(default_factory=list)
    families: dict[str, list[str]] = field(default_factory=dict)
    seen: list[Evaluation] = field(default_factory=list)
    limit: int = 0

    def matrix(self) -> Matrix | None:
        """The distances between all sets, if they are known."""
        if self.distances is None:
            return None
        from engine.measures.distances import Matrix  # late: it loads pandas

        return Matrix.of(self.distances)


@dataclass(frozen=True, eq=False)
class FinishedCampaign:
    """A record, and the folder (`place`) of the plan that it lies in."""

    record: Record
    place: PlanFolder

    @functools.cached_property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations with absolute paths. Raises DamagedFile for a missing or altered file."""
        return self._found(self.record.evaluations)

    @functools.cached_property
    def seen(self) -> list[Evaluation]:
        """`Record.seen` with absolute paths. Raises DamagedFile as `evaluations`."""
        return self._found(self.record.seen)

    @functools.cached_property
    def probe(self) -> list[Evaluation]:
        """`Record.probe` with absolute paths. Raises DamagedFile as `evaluations`."""
        return self._found(self.record.probe)

    def _found(self, rows: Sequence[Evaluation]) -> list[Evaluation]:
        names = dict.fromkeys(str(row.path) for row in rows)
        paths = {name: self._checked(name) for name in names}
        return [dataclasses.replace(row, path=paths[str(row.path)]) for row in rows]

    @functools.cached_property
    def plan(self) -> campaign.Plan:
        """The plan. Raises as `campaign.read`."""
        return campaign.read(self.place)

    def mix(self, evaluation: Evaluation) -> dict[str, float] | Ensemble:
        """The average of cells that the model of an evaluation is.

        Raises DamagedFile as `evaluations`.
        """
        from engine.measures import predictions  # late: planning reads no numbers

        return predictions.mix_of(self._checked(str(evaluation.path)))

    @functools.cache  # noqa: B019  # a campaign lives as long as its process
    def _checked(self, name: str) -> Path:
        place = self.place
        path, store = place.store / name, place.store_root
        if not store.has(name):
            raise DamagedFile(f"{path} is missing: run `rib campaign` again, {AS_BEFORE}")
        if hash_once(path) != self.record.files.get(name):
            raise DamagedFile(
                f"{path} was changed since the campaign ended: delete {path.parent} and run "
                f"`rib campaign` again, {AS_BEFORE}"
            )
        return path


def write(place: PlanFolder, record: Record) -> FinishedCampaign:
    """Write a record into a plan's folder, with a digest of all that it says."""
    place.root.write(place.record, schema.with_digest(dataclasses.asdict(record)))
    return read(place)


def read(place: PlanFolder) -> FinishedCampaign:
    """The record in a plan's folder.

    Raises DamagedFile where it is not as it was written; FileNotFoundError.
    """
    remedy = f"delete it and run `rib campaign` again, {AS_BEFORE}"
    values = schema.read_unaltered(place.record, remedy, place.root)
    return FinishedCampaign(schema.convert(values, Record, place.record, remedy), place)


def find(name: str, overrides: Sequence[Override]) -> FinishedCampaign:
    """The finished run of a campaign with these settings.

    Raises CampaignError where there is none, DamagedFile where its record is damaged.
    """
    plan = campaign.plan(name, overrides)
    stem = Path(name).stem
    plans = [p for p in plan_folder.in_runs(plan.place.runs) if p.campaign.name.startswith(stem)]
    # Words that say what is so anyway name another folder, and the same plan.
    same = [p for p in plans if p.name == plan.place.name and p.root.has(p.record)]
    if same:
        return read(plan.place if plan.place in same else same[0])
    records = any(place.root.has(place.record) for place in plans)
    command = shlex.join(["rib", "campaign", name, *(each.text for each in overrides)])
    differs = ", but one with other settings" if records else ""
    raise CampaignError(
        f"{plan.recipe.runs} holds no finished run of {name} with these settings{differs}; "
        f"`{command}` runs what is missing of it"
    )
