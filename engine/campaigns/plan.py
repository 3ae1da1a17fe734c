"""A campaign's plan: the grid of one model, resolved before anything runs (`make_plan`).

The plan's file holds each row's recipe and each column's settings. Jobs, reports, exports and
evaluations read only that file, so later changes to recipes do not affect the campaign.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from engine.campaigns.groups import groups
from engine.campaigns.plan_folder import REPORT, PlanFolder
from engine.cells.cell_plan import CellPlan, cell_of_plain
from engine.errors import CampaignError
from engine.measures.rows import PLAIN, Setting, trained_sets
from engine.recipe.methods import METHODS, content_digest
from engine.recipe.schema import Recipe
from loaders.files import typed_json
from loaders.files.names import Name, identifier
from loaders.files.typed_json import DamagedFile

# Stages, the rules of the workflow, like REPORT: each is a job, or its jobs' names begin with it.
PREPARE, TRAIN, EVALUATE, COLUMN = "prepare", "train", "evaluate", "column"
DISTANCES = "distances"
MOST_JOBS = 64  # per column
PRIORITIES = {DISTANCES: 1}  # where hours are not predicted: no column waits for the distances
PAGE, TABLE = "index.html", "table.txt"  # in the report's folder
RESULTS = "results.json"  # in the report's folder
SEED = "seed"  # key of a column's setting, where seeds vary or for a replicate


@dataclass(frozen=True)
class Column:
    """All methods fine-tuned on one dataset, or a union `A+B` of several, in one setting.

    settings: values of the keys that vary, including the seed if it varies. is_replicate: whether
    it repeats another column with another seed. Means exclude replicates.
    """

    downstream: Name
    settings: Setting = PLAIN
    is_replicate: bool = False

    @property
    def name(self) -> str:
        """Datasets and settings, as a part of file names."""
        return ",".join(filter(None, (self.downstream, str(self.settings))))

    @property
    def job(self) -> str:
        """The name of the job that writes its part of the record."""
        return f"column-{self.id}"

    @property
    def id(self) -> str:
        """Its name for Snakemake and Slurm, valid for any dataset name."""
        return identifier(self.name)

    @property
    def setting(self) -> Setting:
        """The settings that tables show: all but the seed, over which results are averaged."""
        return self.settings.without(SEED)


class Shape(NamedTuple):
    """How the jobs of campaigns that run together divide work. gpus_per_job: of all jobs but the
    distances and the report. jobs_per_column: as of `Plan`."""

    gpus_per_job: int = 1
    jobs_per_column: int = 1


@dataclass(frozen=True)
class Share:
    """A job that does a part of a column's work first. It only leaves artefacts in the store, which
    the column's job finds, or makes if they are lost.

    job: its name. cells: of TRAIN, the numbers of the cells that it makes, in `Plan.cells`. turn:
    of EVALUATE, the first of the models that it evaluates, which are `Plan.jobs_per_column` apart.
    """

    job: str
    column: Column
    cells: tuple[int, ...] = ()
    turn: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """A resolved campaign.

    Attributes:
        command: the command line that makes this plan.
        rows: the table's rows by name, resolved on the first column.
        columns: the downstream datasets, each in every hyperparameter setting.
        place: the plan's folder, named after a hash of all that determines the results.
        threads: CPU threads of a column's job.
        device: device of all jobs: cpu, cuda or auto (each job chooses).
        is_sweep: whether the command varies a single row.
        modules: digests of methods, by module, and of users' other files (kinds of datasets,
            `dataset.class_names`), by path.
        jobs_per_column: the most jobs that train a column's cells, and the number of those that
            then evaluate its models, before the column's own job; with 1, that job does all.
    """

    name: str
    command: str
    rows: Mapping[str, CellPlan]
    columns: tuple[Column, ...]
    place: PlanFolder
    threads: int
    device: str
    is_sweep: bool = False
    modules: Mapping[str, str] = field(default_factory=dict)
    jobs_per_column: Annotated[int, msgspec.Meta(ge=1, le=MOST_JOBS)] = 1

    @property
    def recipe(self) -> Recipe:
        """The first row's recipe. Use it for settings that all rows share."""
        return next(iter(self.rows.values())).recipe

    @property
    def methods(self) -> tuple[str, ...]:
        """The rows' names, in table order."""
        return tuple(self.rows)

    @property
    def sets(self) -> tuple[str, ...]:
        """The datasets on which RI is measured."""
        return tuple(self.recipe.dataset.sets)

    @property
    def shown_command(self) -> str:
        """The command that repeats the campaign, or `rib campaign` if the stored one is not safe.

        The stored command is untrusted, since a plan can come from somebody else.
        """
        try:
            words = shlex.split(self.command)
        except ValueError:
            words = []
        is_ours = words[:2] == ["rib", "campaign"] and shlex.join(words) == self.command
        return self.command if is_ours and self.command.isprintable() else "rib campaign"

    @property
    def seeds(self) -> int:
        return self.recipe.seeds

    @property
    def page(self) -> Path:
        """The campaign's report."""
        return self.place.report / PAGE

    @property
    def downstreams(self) -> list[str]:
        """The downstream datasets and unions."""
        return list(dict.fromkeys(column.downstream for column in self.columns))

    @property
    def jobs(self) -> list[str]:
        """The names of all jobs, each after those that it needs."""
        return list(self.needs)

    @cached_property
    def needs(self) -> Mapping[str, Sequence[str]]:
        """The jobs that end before a job starts, by its name."""
        needs: dict[str, list[str]] = {PREPARE: []}
        for column in self.columns:
            trainings, evaluations = self._shares_of(column)
            trained = [PREPARE, *(share.job for share in trainings)]
            needs |= {share.job: [PREPARE] for share in trainings}
            needs |= {share.job: trained for share in evaluations}
            needs[column.job] = [*trained, *(share.job for share in evaluations)]
        columns = [column.job for column in self.columns]
        return {**needs, DISTANCES: [PREPARE], REPORT: [DISTANCES, *columns]}

    @cached_property
    def shares(self) -> Mapping[str, Share]:
        """The jobs that do parts of columns, by name."""
        shares = (chain(*self._shares_of(column)) for column in self.columns)
        return {share.job: share for share in chain(*shares)}

    def column_of(self, job: str) -> Column:
        """The column of a job that works for one."""
        return self.shares[job].column if job in self.shares else self._columns[job]

    @cached_property
    def _columns(self) -> Mapping[str, Column]:
        return {column.job: column for column in self.columns}

    def cells_of(self, job: str) -> Sequence[int]:
        """Numbers of the cells that a job makes, in `cells`: a column's are those that no other job
        makes."""
        if stage_of(job) == COLUMN:
            return self._cells_of_columns
        return self.shares[job].cells if job in self.shares else ()

    @cached_property
    def _cells_of_columns(self) -> Sequence[int]:
        made = set(chain(*self._groups))
        return [k for k in range(len(self.rows) * self.seeds) if k not in made]

    def _shares_of(self, column: Column) -> tuple[list[Share], list[Share]]:
        """The jobs that train a column's cells, and those that evaluate its models.

        The column's own job evaluates what a campaign tries: it leaves diverged models out.
        """
        count = self.jobs_per_column
        trainings = [
            Share(f"{TRAIN}-{turn}of{count}-{self._words(cells)}-{column.id}", column, cells)
            for turn, cells in enumerate(self._groups, start=1)
        ]
        turns = range(count if count > 1 and not column.setting.is_tried else 0)
        return trainings, [
            Share(f"{EVALUATE}-{turn + 1}of{count}-{column.id}", column, turn=turn)
            for turn in turns
        ]

    @cached_property
    def _groups(self) -> list[tuple[int, ...]]:
        """Numbers of the cells of each job that trains, the same in all columns."""
        if self.jobs_per_column == 1:
            return []
        return groups(list(self.cells(self.columns[0])), self.jobs_per_column)

    def _words(self, cells: Sequence[int]) -> str:
        """The rows of cells as a part of a job's name, which need not be complete."""
        rows = dict.fromkeys(self.methods[number % len(self.rows)] for number in cells)
        return re.sub(r"[^A-Za-z0-9_+]+", "_", "+".join(rows))[:30]

    @property
    def needed(self) -> list[str]:
        """The datasets that a campaign reads: those that it evaluates on come first, then those
        that it only fine-tunes on or fits the head on."""
        return list(dict.fromkeys([*self.recipe.base_sets, *self.trained_sets]))

    @property
    def trained_sets(self) -> list[str]:
        """The datasets of all columns."""
        return list(dict.fromkeys(chain(*map(trained_sets, self.downstreams))))

    def cells(self, column: Column) -> Iterator[CellPlan]:
        """The cells of a column: all rows with the first seed, then all rows with the next."""
        return (cell for _, cell in self.named_cells(column))

    def named_cells(self, column: Column) -> Iterator[tuple[str, CellPlan]]:
        """As `cells`, with the names of the rows."""
        rows = {name: row.on(column.downstream, column.settings) for name, row in self.rows.items()}
        first = next(iter(rows.values())).recipe.seed
        for seed in range(first, first + self.seeds):
            yield from ((name, cell.seeded(seed)) for name, cell in rows.items())

    @property
    def recipes(self) -> list[list[list[Recipe]]]:
        """Of each column, the recipes of each cell and of all cells that are trained for it."""
        return [
            [[cell.recipe for cell in row.trained()] for row in self.cells(column)]
            for column in self.columns
        ]


def stage_of(job: str) -> str:
    """The rule of the workflow that runs a job."""
    return job.partition("-")[0]


def plan_to_json(plan: Plan) -> bytes:
    """The content of the plan's file. `read_plan` is the inverse."""
    values = dataclasses.asdict(plan)
    # `read_plan` takes it from the file's location, so the runs folder can move.
    del values["place"]
    return typed_json.with_digest(values)


def read_plan(place: PlanFolder) -> Plan:
    """Read the plan in a folder, without reading recipes or users' method files.

    Raises DamagedFile if the file is damaged, FileNotFoundError if it is missing.
    """
    path, remedy = place.plan, place.remedy
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    values = typed_json.read_unaltered(path, remedy, place.root)
    try:
        plain = values.pop("rows").items()
        # The runs folder may have moved since.
        rows = {name: cell_of_plain(row).below(place.runs) for name, row in plain}
        values |= {"rows": {}, "place": {"path": str(place.path)}}
        plan = msgspec.convert(values, Plan, dec_hook=lambda kind, text: kind(text))
    except (msgspec.ValidationError, KeyError, AttributeError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); {remedy}") from error
    return dataclasses.replace(plan, rows=rows)


def check_modules(plan: Plan) -> None:
    """Raise CampaignError if a method, or a user's other file, changed since the campaign was
    planned."""
    for name, digest in plan.modules.items():
        is_there = name in METHODS.names() or Path(name).is_file()
        if not is_there or content_digest(name) != digest:
            raise CampaignError(
                f"{name} changed since the campaign was planned: restore it, or start the "
                "campaign again, which plans with the new file"
            )
