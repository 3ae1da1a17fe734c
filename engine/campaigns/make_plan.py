"""Make the plan of a campaign: resolve the recipe of every cell, and check the grid."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.campaigns.columns import columns_of
from engine.campaigns.plan import Column, Plan
from engine.campaigns.plan_folder import PLANS, PlanFolder
from engine.cells.cell_plan import CellPlan
from engine.cells.plan_cell import plan_cell
from engine.errors import RecipeError
from engine.recipe import catalogue, extras
from engine.recipe.campaigns import OF_GRID, SELECTION, VARY, methods_of, model_of
from engine.recipe.effects import effect_of, values_of
from engine.recipe.finder import is_users
from engine.recipe.grid_keys import grid_keys
from engine.recipe.kinds import users_files
from engine.recipe.methods import METHODS, content_digest
from engine.recipe.overrides import Override, flat
from engine.recipe.schema import Affects, Recipe
from engine.store import artifacts
from loaders.files.durable import short_digest


@catalogue.each_file_once()
def make_plan(name: str, overrides: Sequence[Override], cores: int = 1) -> Plan:
    """Resolve every cell of a campaign. Imports no torch.

    Running the campaign requires a plan for which users' method files ran (`allow_users_files`).
    Raises RecipeError if anything cannot be resolved, or if there are fewer than two datasets.
    """
    grid = grid_keys(name, overrides)
    methods = methods_of(name, overrides)
    _check_overrides(overrides, methods)
    rows = {
        method: plan_cell(name, overrides, method=method, trials=grid.trials) for method in methods
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
    is_sweep = len(methods) == 1 and VARY in grid.given  # the command line varies a single row
    swept = list(grid.param_grid) if is_sweep else []
    everything = [cell.recipe for row in rows.values() for cell in row.all()]
    programs = users_files(shared.dataset) | extras.users_files(shared)
    programs |= {cell.method.module for cell in everything}
    if (words := shared.dataset.class_names) and any(cell.reads_class_names for cell in everything):
        programs |= {words}
    programs |= _files(rows.values(), columns)
    files = {program: content_digest(program) for program in sorted(programs)}
    digest = _identity(rows, columns, files)
    folder = _title(name, overrides, methods, shared, swept, digest)
    return Plan(
        name,
        shlex.join(["rib", "campaign", name, *(override.text for override in overrides)]),
        rows,
        columns,
        PlanFolder(Path(shared.runs).resolve() / folder / PLANS / digest),
        max(shared.threads, cores // len(columns)),
        shared.device,
        is_sweep,
        files,
    )


def _files(rows: Iterable[CellPlan], columns: Sequence[Column]) -> set[str]:
    """The files that methods read, besides recipes, for the cells of these columns."""
    return {
        str(file)
        for row, column in itertools.product(rows, columns)
        for cell in row.on(column.downstream, column.settings).all()
        for seed in range(cell.recipe.seed, cell.recipe.seed + cell.recipe.seeds)
        for file in cell.recipe.method.files(dataclasses.replace(cell.recipe, seed=seed))
    }


def _check_overrides(overrides: Sequence[Override], methods: Sequence[str]) -> None:
    """Raise RecipeError for settings of a single cell, which do not apply to a grid."""
    alone = any(override.key == SELECTION for override in overrides) and len(methods) == 1
    for override in overrides:
        of_grid = override.key in (*OF_GRID, "method.variant")
        of_row = alone and override.key.startswith("method.")
        if not (of_grid or of_row) and override.section in ("method", SELECTION):
            raise RecipeError(
                f"{override.text!r}: a campaign trains several methods: select them with "
                "methods=[A,B], and set a method's options below `methods:` in your campaign file, "
                "or on the command line together with methods=[A]"
            )
        if override.key == "campaign":
            raise RecipeError(
                f"{override.text!r}: put the campaign's name first, as in "
                f"`rib campaign {override.value}`"
            )
        if override.key == "downstream":
            raise RecipeError(
                f"{override.text!r}: a campaign trains on all its datasets: select them with "
                "dataset.sets=[A,B] or downstreams=[A,B], or train a single cell with "
                "engine/launch.py"
            )


def _check_shared(file: str, rows: Mapping[str, CellPlan]) -> None:
    """Raise RecipeError if a row changes a value that the grid takes from its first row."""
    shared = _shared(next(iter(rows.values())))
    for name, row in rows.items():
        for cell in row.all():
            for key, value in _shared(cell).items():
                if value != shared[key]:
                    raise RecipeError(
                        f"{file} (methods.{name}): this row, or a method that it needs, sets "
                        f"`{key}`, which all rows share: set `{key}` at the level of `methods:`, "
                        "or make another campaign"
                    )


def _shared(cell: CellPlan) -> dict[str, Any]:
    return flat(values_of(cell.recipe, {Affects.CAMPAIGN, Affects.PACK}))


def settings_of_needs(plan: Plan) -> list[dict[str, Any]]:
    """Settings of all cells that the rows need.

    They include those of users' methods, which the plan's identity leaves out, if their files
    ran when the plan was made.
    """
    of_rows = [need for row in plan.rows.values() for need in row.needs.values()]
    return [_settings(cell, plan.modules) for need in of_rows for cell in need.all()]


def _identity(
    rows: Mapping[str, CellPlan], columns: Sequence[Column], digests: Mapping[str, str]
) -> str:
    """A digest of all that determines a campaign's results; the name of the plan's folder."""
    data = [digests[name] for name in digests if not (is_users(name) or name in METHODS.names())]
    return short_digest(
        {
            "format": artifacts.FORMAT,
            "rows": {name: _settings(row, digests) for name, row in rows.items()},
            "columns": [[column.downstream, dict(column.settings)] for column in columns],
            **({"files": sorted(data)} if data else {}),
        }
    )


def _settings(cell: CellPlan, digests: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a cell that can change results, but for its column.

    A method is identified by its module's name and digest, and a user's method without its needs,
    which are known only after running the file; the words of classes by the digest of their file.
    """
    values = values_of(cell.recipe, set(Affects) - {Affects.NOTHING})
    del values["downstream"]
    values |= {"trials": cell.trials} if cell.trials else {}
    values["extras"] = {
        name: _by_content(section, digests, extras.FILE)
        for name, section in values["extras"].items()
    }
    own = {
        name: _by_content(of_set, digests)
        for name, of_set in values["dataset"]["per_dataset"].items()
    }
    dataset: dict[str, Any] = {**_by_content(values["dataset"], digests), "per_dataset": own}
    values["dataset"] = dataset
    words, templates = dataset.pop("class_names"), dataset.pop("templates")
    dataset |= {"evaluate_on": further} if (further := dataset.pop("evaluate_on")) else {}
    dataset |= {"probe_sets": probes} if (probes := dataset.pop("probe_sets")) else {}
    if cell.recipe.reads_class_names:
        dataset |= {"class_names": digests.get(words)} if words else {}
        dataset |= {"templates": templates} if templates else {}
    module = cell.recipe.method.module
    values["method"] |= {"module": Path(module).name, "source": digests.get(module)}
    if is_users(module):
        return values
    return values | {"needs": {name: _settings(need, digests) for name, need in cell.needs.items()}}


def _by_content(
    section: Mapping[str, Any], digests: Mapping[str, str], key: str = "kind"
) -> dict[str, Any]:
    """A section with the name and SHA-256 of a user's file in place of its path."""
    if not is_users(file := str(section.get(key, ""))):
        return {**section}
    return {**section, key: [Path(file).name, digests.get(file)]}


def _title(
    name: str,
    overrides: Sequence[Override],
    methods: Sequence[str],
    cell: Recipe,
    swept: Sequence[str],
    identity: str,
) -> str:
    """The name of the campaign's folder.

    Overrides that change results get a separate folder, so they do not overwrite the report of the
    campaign's file.
    """
    models = [override.value for override in overrides if override.key == "model"]
    is_default = not models or models[-1] == model_of(name)
    title = [Path(name).stem, *([] if is_default else [cell.model.name])]
    if swept:
        title += [methods[0], "sweep", *(key.rpartition(".")[2] for key in swept)]
    title += [f"limit-{cell.dataset.limit}"] if cell.dataset.limit else []
    apart = [override.key for override in overrides if override.key not in ("device", "model")]
    if any(effect_of(key) is not Affects.NOTHING for key in apart):
        title.append(identity[:8])
    return "-".join(title)
