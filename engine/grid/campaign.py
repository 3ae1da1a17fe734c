"""A campaign's plan: the whole grid of one model, resolved before anything runs.

The plan's file holds each row's recipe and each column's settings. Jobs, reports, exports and
evaluations read that file and no other, so that a recipe that changes later changes no campaign.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine import recipe
from engine.cells import cell_plan
from engine.cells.cell_plan import CellPlan
from engine.errors import CampaignError, RecipeError
from engine.grid.columns import Column, columns_of
from engine.grid.plan_folder import PLANS, REPORT, PlanFolder
from engine.machine.files import short_digest
from engine.recipe import catalogue, modules
from engine.recipe.campaigns import SELECTION, VARY
from engine.recipe.overrides import Override
from engine.recipe.schema import Recipe, TrainRecipe
from engine.store import artifacts
from loaders import schema
from loaders.files import file_hash
from loaders.schema import DamagedFile

PREPARE, COLUMN = "prepare", "column"  # jobs, and rules of the workflow, like REPORT
PAGE, TABLE = "index.html", "table.txt"  # of a report, in a folder that is called so
RESULTS = "results.json"  # there too
OF_ROW = ("method", "optimizer", "train", "trackers")  # what a row may set; rows share the rest
# These keys change where and how a campaign runs, and not what it says.
OUTSIDE = ("runs", "trackers", "device", "train.checkpoint_minutes", "model")


@dataclass(frozen=True, eq=False)
class Plan:
    """What a campaign will do.

    command: the line that makes this plan. rows: of its table, by name, each on the first column.
    columns: those fine-tuned on, in every setting. device: of all jobs, cpu | cuda | auto (what a
    job sees). is_sweep: whether the command varies a single row. modules: SHA-256 of users' method
    files, by path. place: a folder that is named after everything that determines the results.
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
        """The first row's recipe, for settings that all rows share."""
        return next(iter(self.rows.values())).recipe

    @property
    def methods(self) -> tuple[str, ...]:
        """The rows' names, in table order."""
        return tuple(self.rows)

    @property
    def sets(self) -> tuple[str, ...]:
        """The datasets of RI."""
        return tuple(self.recipe.dataset.sets)

    @property
    def shown_command(self) -> str:
        """The command that repeats the campaign. Untrusted: the plan may come from somebody
        else."""
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
        """The downstream datasets."""
        return list(dict.fromkeys(column.downstream for column in self.columns))

    @property
    def jobs(self) -> list[str]:
        """The names of all jobs, in their order."""
        return [PREPARE, *(column.job for column in self.columns), REPORT]

    @property
    def steps(self) -> int:
        """Steps of the progress bar: a set each, upstream, the model; the cells of each column and
        their evaluation; the report."""
        of_column = len(self.rows) * self.seeds + 1
        return len(self.sets) + 2 + of_column * len(self.columns) + 1

    @property
    def needed(self) -> list[str]:
        """The sets that a campaign reads: those that it evaluates on, then those that it only
        fine-tunes on or fits the head on."""
        return list(dict.fromkeys([*self.recipe.base_sets, *self.downstreams]))

    def cells(self, column: Column) -> Iterator[CellPlan]:
        """The cells of a column: all rows with the first seed, then with the next."""
        on = [row.on(column.downstream, column.settings) for row in self.rows.values()]
        first = on[0].recipe.seed
        for seed in range(first, first + self.seeds):
            yield from (cell.seeded(seed) for cell in on)


@catalogue.each_file_once()
def plan(
    name: str, overrides: Sequence[Override], cores: int = 1, *, run_users: bool = False
) -> Plan:
    """Resolve every cell of a campaign. Imports no torch.

    run_users: whether users' method files may run, which is needed to run the campaign. Raises
    RecipeError for anything that cannot be resolved, or too few sets or methods.
    """
    grid = recipe.grid_keys(name, overrides)
    methods = recipe.methods_of(name, overrides)
    _check_overrides(overrides, methods)
    rows = {
        method: cell_plan.resolve(name, overrides, method=method, run_users=run_users)
        for method in methods
    }
    cells = [row.recipe for row in rows.values()]
    shared = cells[0]
    if len(shared.dataset.sets) < 2:
        sets = list(shared.dataset.sets)
        raise RecipeError(f"dataset.sets={sets}: a campaign requires at least two datasets")
    _check_shared(grid.file, rows)
    names = [(cell.method.title, cell.method.variant) for cell in cells]
    if twice := sorted(title for title, variant in names if names.count((title, variant)) > 1):
        raise RecipeError(f"two rows have the title {twice[0]!r}: give one of them another `title`")
    columns = columns_of(grid, cells)
    if shared.dataset.holdout and shared.evaluate.split != "holdout":
        raise RecipeError(
            f"dataset.holdout={shared.dataset.holdout:g}: a campaign evaluates all cells on the "
            "same images: set evaluate.split=holdout, or dataset.holdout=0 to hold none out"
        )
    is_sweep = len(methods) == 1 and VARY in grid.given  # the command line varies a single row
    swept = list(grid.vary) if is_sweep else []
    files = {
        cell.recipe.method.module: file_hash(Path(cell.recipe.method.module))
        for row in rows.values()
        for cell in row.all()
        if modules.is_users(cell.recipe.method.module)
    }
    identity = short_digest(
        {
            "format": artifacts.FORMAT,
            "rows": {name: _settings(row, files) for name, row in rows.items()},
            "columns": [[column.downstream, dict(column.settings)] for column in columns],
        }
    )
    folder = _title(name, overrides, methods, shared, swept, identity)
    return Plan(
        name,
        shlex.join(["rib", "campaign", name, *(each.text for each in overrides)]),
        rows,
        columns,
        PlanFolder(Path(shared.runs).resolve() / folder / PLANS / identity),
        max(shared.threads, cores // len(columns)),
        shared.device,
        is_sweep,
        files,
    )


def _check_overrides(overrides: Sequence[Override], methods: Sequence[str]) -> None:
    """Raise RecipeError for settings of one method or dataset, which do not apply to a grid."""
    alone = any(each.key == SELECTION for each in overrides) and len(methods) == 1
    for each in overrides:
        of_grid = each.key in (*recipe.OF_GRID, "method.variant")
        of_row = alone and each.key.startswith("method.")
        if not (of_grid or of_row) and each.section in ("method", SELECTION):
            raise RecipeError(
                f"{each.text!r}: a campaign trains several methods: select them with "
                "methods=[A,B], and set a method's options below `methods:` in your campaign file, "
                "or on the command line together with methods=[A]"
            )
        if each.key == "campaign":
            raise RecipeError(
                f"{each.text!r}: put the campaign's name first, as in `rib campaign {each.value}`"
            )
        if each.key == "downstream":
            raise RecipeError(
                f"{each.text!r}: a campaign trains on all its datasets: select them with "
                "dataset.sets=[A,B] or downstreams=[A,B], or train a single cell with "
                "engine/launch.py"
            )


def _check_shared(file: str, rows: Mapping[str, CellPlan]) -> None:
    """Raise RecipeError if a row changes a value that the grid takes from its first row."""
    shared = next(iter(rows.values())).recipe
    keys = [field.name for field in dataclasses.fields(Recipe) if field.name not in OF_ROW]
    for (name, row), key in itertools.product(rows.items(), keys):
        if any(getattr(cell.recipe, key) != getattr(shared, key) for cell in row.all()):
            raise RecipeError(
                f"{file} (methods.{name}): it, or a method that it needs, sets `{key}`, which all "
                f"rows share: set `{key}` at the level of `methods:`, or make another campaign"
            )


def needs(plan: Plan) -> list[dict[str, Any]]:
    """What the rows need. Of users' methods a plan for which their files ran knows it, and its
    identity does not."""
    of_rows = [need for row in plan.rows.values() for need in row.needs.values()]
    return [_settings(cell, plan.modules) for need in of_rows for cell in need.all()]


def _settings(cell: CellPlan, sha256: Mapping[str, str]) -> dict[str, Any]:
    """The part of a cell that can change results; paths, trackers and checkpoints cannot.

    A user's method is named by its file's name and content (`sha256`, by path): what it needs is
    known only where the file runs.
    """
    values = dataclasses.asdict(cell.recipe)
    for key in ("runs", "campaign", "trackers", "downstream"):
        del values[key]
    values["train"]["checkpoint_minutes"] = TrainRecipe.checkpoint_minutes
    module = cell.recipe.method.module
    if modules.is_users(module):
        file = {"module": Path(module).name, "sha256": sha256[module]}
        return {**values, "method": {**values["method"], **file}}
    return values | {"needs": {name: _settings(need, sha256) for name, need in cell.needs.items()}}


def _title(
    name: str,
    overrides: Sequence[Override],
    methods: Sequence[str],
    cell: Recipe,
    swept: Sequence[str],
    identity: str,
) -> str:
    """The name of the campaign's folder.

    Overrides that change the results have a folder of their own, so that they leave the report of
    the campaign's file alone.
    """
    models = [each.value for each in overrides if each.key == "model"]
    is_default = not models or models[-1] == recipe.model_of(name)
    title = [Path(name).stem, *([] if is_default else [cell.model.name])]
    if swept:
        title += [methods[0], "sweep", *(key.rpartition(".")[2] for key in swept)]
    title += [f"limit-{cell.dataset.limit}"] if cell.dataset.limit else []
    if any(each.key not in OUTSIDE for each in overrides):
        title.append(identity[:8])
    return "-".join(title)


def to_json(plan: Plan) -> bytes:
    """The plan as its file, which `read` reads."""
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    del values["place"]  # of its file, wherever the folder of runs moves
    return schema.with_digest(
        values
        | {
            "rows": {name: row.plain() for name, row in plan.rows.items()},
            "columns": [dataclasses.asdict(column) for column in plan.columns],
        }
    )


def read(place: PlanFolder) -> Plan:
    """The plan in a folder; no recipe and no method's module is read.

    Raises DamagedFile and FileNotFoundError, which name the file.
    """
    remedy = "run `rib campaign` again, which writes it anew"
    path = place.plan
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    values = schema.read_unaltered(path, remedy, place.root)
    try:
        plain = values.pop("rows").items()
        # A folder of runs that moved is where its plan is.
        rows = {name: cell_plan.of_plain(row).below(place.runs) for name, row in plain}
        values |= {"rows": {}, "place": {"path": str(place.path)}}
        plan = msgspec.convert(values, Plan, dec_hook=lambda kind, text: kind(text))
    except (msgspec.ValidationError, RecipeError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); {remedy}") from error
    return dataclasses.replace(plan, rows=rows)


def check_modules(plan: Plan) -> None:
    """Raise CampaignError where a user's method file is not as it was planned."""
    for name, sha256 in plan.modules.items():
        if not Path(name).is_file() or file_hash(Path(name)) != sha256:
            raise CampaignError(
                f"{name} changed since the campaign was planned: restore it, or start the "
                "campaign again, which plans with the new file"
            )
