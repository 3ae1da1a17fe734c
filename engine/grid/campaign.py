"""A campaign: the whole grid of one model, planned before anything runs.

Every cell is resolved first, so that a mistake shows before any work is done. The markers of
artefacts tell what is finished; `engine.grid.workflow` runs the rest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import recipe
from engine.errors import RecipeError
from engine.grid.columns import Column, columns_of
from engine.machine.files import digest
from engine.recipe import modules
from engine.recipe.request import Request
from engine.recipe.schema import DatasetRecipe, Recipe
from engine.store import artifacts
from loaders.files import file_hash

REPORT, TABLE = "report", "table.txt"
RECORD = "evaluations.json"  # beside a plan: what its report is made of
STAMP = "plan"  # beside a report: the name of the plan that it shows


@dataclass(frozen=True)
class Plan:
    """What a campaign will do; `folder` holds its plan, progress, log and report.

    methods: the rows of its table. sets: those that RI is measured on. columns: those fine-tuned
    on, in every setting.
    """

    name: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    sets: tuple[str, ...]
    columns: tuple[Column, ...]
    folder: Path
    threads: int
    seeds: int = 1
    path: Path = Path()  # on disk, in a folder named after everything that determines the results

    @property
    def downstreams(self) -> list[str]:
        """The sets that are fine-tuned on."""
        return list(dict.fromkeys(column.downstream for column in self.columns))

    def needed(self, dataset: DatasetRecipe) -> list[str]:
        """The sets that a campaign reads: those that it evaluates on, then those that it only
        fine-tunes on."""
        return list(dict.fromkeys([*dataset.places, *self.downstreams]))

    def column(self, name: str) -> Column:
        """The column of this name."""
        return next(column for column in self.columns if column.name == name)


def plan(name: str, overrides: Sequence[str], cores: int) -> Plan:
    """Resolve every cell of a campaign. No user's method runs; see `check_users_methods`.

    Raises RecipeError for anything that cannot be resolved, or too few cores, sets or methods.
    """
    grid = recipe.grid_keys(name, overrides)
    if cores < 1:
        raise RecipeError(f"--cores {cores}: at least one is needed")
    _check_words(overrides)
    methods = recipe.methods_of(name, overrides)
    cells = [recipe.load(name, overrides, method=method) for method in methods]
    for cell in cells:
        _check_siblings(Request(name, tuple(overrides)), cell)
    sets = tuple(cells[0].dataset.sets)
    if len(sets) < 2:
        raise RecipeError(f"dataset.sets={list(sets)}: a campaign needs two sets or more")
    columns = columns_of(grid, cells)
    if cells[0].dataset.holdout and cells[0].evaluate.split != "holdout":
        raise RecipeError(
            f"dataset.holdout={cells[0].dataset.holdout:g}: a campaign judges cells on the same "
            "images; set evaluate.split=holdout, or dataset.holdout=0 to hold none out"
        )
    folder = Path(cells[0].runs) / _title(name, overrides, cells[0].model.name)
    identity = _identity(cells, [_settings(cell) for cell in cells], grid.given)
    return Plan(
        name,
        tuple(overrides),
        tuple(methods),
        sets,
        columns,
        folder,
        threads=max(cells[0].threads, cores // len(columns)),
        seeds=cells[0].seeds,
        path=folder.resolve() / "plans" / identity / "plan.json",
    )


def _check_words(overrides: Sequence[str]) -> None:
    """Refuse words about a single method or set, which have no effect on a whole grid."""
    for word in overrides:
        key = word.partition("=")[0]
        of_grid = key in (*recipe.OF_GRID, "method.variant")
        if not of_grid and key.partition(".")[0] in ("method", recipe.SELECTION):
            raise RecipeError(
                f"{word!r}: a campaign trains several methods; choose them by methods=[A,B], and "
                "set a method's options below `methods:` in your campaign file"
            )
        if key == "downstream":
            raise RecipeError(
                f"{word!r}: a campaign trains on all its sets; choose them by dataset.sets=[A,B] "
                "or downstreams=[A,B], or train a single cell by engine/launch.py"
            )


def check_users_methods(plan: Plan) -> None:
    """Run the files of users' methods, for what only they can refuse, before any work is done.

    Raises RecipeError as `plan` does, and where a method's `check` refuses its cell.
    """
    request = Request(plan.name, plan.overrides)
    for method in plan.methods:
        cell = request.recipe(method)
        if modules.is_users(cell.method.module):
            modules.method_of(cell)
        _check_siblings(request, cell, run_users=True)


def _check_siblings(request: Request, cell: Recipe, *, run_users: bool = False) -> None:
    """Raise RecipeError if a method is made of methods that do not exist or do not train."""
    from engine.methods import base  # imports torch, which a finished campaign does not need

    request = request.for_needs(cell)
    for _, sibling in base.siblings(cell.method, request.recipe, run_users=run_users):
        _check_siblings(request, sibling, run_users=run_users)


def identify(name: str, overrides: Sequence[str]) -> tuple[Path, str]:
    """A campaign's folder and a digest of its files and words, by which its record is found.

    Imports no method's module, and so no torch.
    """
    _check_words(overrides)
    methods = recipe.methods_of(name, overrides)
    outlines = [recipe.outline(name, overrides, method) for method in methods]
    cells = [cell for cell, _ in outlines]
    settings = [_settings(cell) | {"own": _by_name(section)} for cell, section in outlines]
    folder = Path(cells[0].runs) / _title(name, overrides, cells[0].model.name)
    return folder, _identity(cells, settings, recipe.grid_keys(name, overrides).given)


def _identity(
    cells: Sequence[Recipe], settings: Sequence[Mapping[str, Any]], grid: Mapping[str, Any]
) -> str:
    modules = [Path(cell.method.module) for cell in cells if cell.method.module.endswith(".py")]
    hashes = [file_hash(path) for path in modules]
    return digest({"format": artifacts.FORMAT, "cells": list(settings), "files": hashes, **grid})


def _settings(cell: Recipe) -> dict[str, Any]:
    """The part of a cell's recipe that can change results; paths cannot."""
    values = dataclasses.asdict(cell)
    del values["runs"], values["campaign"]
    return values | {"method": _by_name(values["method"])}


def _by_name(section: Mapping[str, Any]) -> dict[str, Any]:
    """A method's section. A user's module is named by its file name; its content is hashed."""
    module = str(section["module"])
    return {**section, "module": Path(module).name if module.endswith(".py") else module}


def _title(name: str, overrides: Sequence[str], model: str) -> str:
    """The name of the campaign's folder. Grids of other models than the file's name theirs."""
    words = [word.removeprefix("model=") for word in overrides if word.startswith("model=")]
    is_default = not words or words[-1] == recipe.model_of(name)
    return Path(name).stem if is_default else f"{Path(name).stem}-{model}"


def read(path: Path) -> Plan:
    """A plan from its file on disk."""
    values = json.loads(path.read_text())
    fields: dict[str, Any] = {f.name: values[f.name] for f in dataclasses.fields(Plan)}
    for name in ("overrides", "methods", "sets"):
        fields[name] = tuple(fields[name])
    columns = [{**column, "overrides": tuple(column["overrides"])} for column in fields["columns"]]
    fields["columns"] = tuple(Column(**column) for column in columns)
    fields |= {"folder": Path(fields["folder"]), "path": path}
    return Plan(**fields)


def finished(plan: Plan) -> bool:
    """Whether the report in the campaign's folder is that of exactly this plan."""
    page, place = report_page(plan), plan.path.parent
    stamp = page.with_name(STAMP)
    needed = (place / "done" / "report", place / RECORD, page, page.with_name(TABLE), stamp)
    return all(file.is_file() for file in needed) and stamp.read_text() == place.name


def report_page(plan: Plan) -> Path:
    """The HTML page of the campaign's report."""
    return plan.folder / REPORT / "index.html"
