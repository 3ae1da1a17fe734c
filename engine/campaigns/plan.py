"""A campaign's plan: the grid of one model, resolved before anything runs (`make_plan`).

The plan's file holds each row's recipe and each column's settings. Jobs, reports, exports and
evaluations read only that file, so later changes to recipes do not affect the campaign.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import msgspec

from engine.campaigns.plan_folder import REPORT, PlanFolder
from engine.cells.cell_plan import CellPlan, cell_of_plain
from engine.errors import CampaignError
from engine.measures.rows import PLAIN, Setting, trained_sets
from engine.recipe.methods import METHODS, content_digest
from engine.recipe.schema import Recipe
from loaders.files import typed_json
from loaders.files.names import Name, identifier
from loaders.files.typed_json import DamagedFile

# Jobs, and rules of the workflow, like REPORT.
PREPARE, DISTANCES, COLUMN = "prepare", "distances", "column"
PAGE, TABLE = "index.html", "table.txt"  # in the report's folder
RESULTS = "results.json"  # in the report's folder
SEED = "seed"  # key of a column's setting, where seeds vary or for a replicate


@dataclass(frozen=True)
class Column:
    """All methods fine-tuned on one dataset, or a union `A+B` of several, in one setting: one job.

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
        """The name of its job and of its files, without characters special to a shell."""
        return f"column-{self.id}"

    @property
    def id(self) -> str:
        """Its name for Snakemake and Slurm, valid for any dataset name."""
        return identifier(self.name)

    @property
    def setting(self) -> Setting:
        """The settings that tables show: all but the seed, over which results are averaged."""
        return self.settings.without(SEED)


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
            `dataset.words`), by path.
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
        """The names of all jobs, in the order in which they run."""
        return [PREPARE, *(column.job for column in self.columns), DISTANCES, REPORT]

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
    def recipes(self) -> list[list[Recipe]]:
        """Of each column: the recipes of its cells and of all cells that these need."""
        return [
            [cell.recipe for row in self.cells(column) for cell in row.all()]
            for column in self.columns
        ]


def stage_of(job: str) -> str:
    """The rule of the workflow that runs a job."""
    return job if job in (PREPARE, DISTANCES, REPORT) else COLUMN


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
    remedy = "run `rib campaign` again, which writes it anew"
    path = place.plan
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
