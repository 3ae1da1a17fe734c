"""A campaign: the whole grid of one model, planned before anything runs.

Every cell is resolved first, so that a mistake shows before any work is done. The markers of
artefacts tell what is finished; `engine.grid.workflow` runs the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import recipe
from engine.errors import RecipeError
from engine.grid.columns import Column, columns_of
from engine.machine.files import digest
from engine.recipe import modules, yaml_text
from engine.recipe.campaigns import VARY
from engine.recipe.request import Request
from engine.recipe.schema import DatasetRecipe, Recipe, TrainRecipe
from engine.store import artifacts
from loaders import schema
from loaders.files import file_hash

REPORT, PAGE, TABLE = "report", "index.html", "table.txt"
RECORD = "evaluations.json"  # beside a plan: what its report is made of


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
    methods = recipe.methods_of(name, overrides)
    _check_words(overrides, methods)
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
    folder = _folder(name, overrides, methods, cells[0])
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


def _check_words(overrides: Sequence[str], methods: Sequence[str]) -> None:
    """Refuse words about a single method or set, which have no effect on a whole grid."""
    alone = [word for word in overrides if word.startswith("methods=")] and len(methods) == 1
    for word in overrides:
        key = word.partition("=")[0]
        of_grid = key in (*recipe.OF_GRID, "method.variant")
        of_row = alone and key.startswith("method.")
        if not (of_grid or of_row) and key.partition(".")[0] in ("method", recipe.SELECTION):
            raise RecipeError(
                f"{word!r}: a campaign trains several methods; choose them by methods=[A,B], and "
                "set a method's options below `methods:` in your campaign file, or on the command "
                "line beside methods=[A]"
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
    methods = recipe.methods_of(name, overrides)
    _check_words(overrides, methods)
    outlines = [recipe.outline(name, overrides, method) for method in methods]
    cells = [cell for cell, _ in outlines]
    settings = [_settings(cell) | {"own": _by_name(section)} for cell, section in outlines]
    folder = _folder(name, overrides, methods, cells[0])
    return folder, _identity(cells, settings, recipe.grid_keys(name, overrides).given)


def _identity(
    cells: Sequence[Recipe], settings: Sequence[Mapping[str, Any]], grid: Mapping[str, Any]
) -> str:
    modules = [Path(cell.method.module) for cell in cells if cell.method.module.endswith(".py")]
    hashes = [file_hash(path) for path in modules]
    return digest({"format": artifacts.FORMAT, "cells": list(settings), "files": hashes, **grid})


def _settings(cell: Recipe) -> dict[str, Any]:
    """The part of a cell's recipe that can change results; paths and checkpoints cannot."""
    values = dataclasses.asdict(cell)
    del values["runs"], values["campaign"]
    # Not left out: identities of campaigns that ran with the default stay as they are.
    values["train"]["checkpoint_minutes"] = TrainRecipe.checkpoint_minutes
    return values | {"method": _by_name(values["method"])}


def _by_name(section: Mapping[str, Any]) -> dict[str, Any]:
    """A method's section. A user's module is named by its file name; its content is hashed."""
    module = str(section["module"])
    return {**section, "module": Path(module).name if module.endswith(".py") else module}


def swept(overrides: Sequence[str], methods: Sequence[str]) -> list[str]:
    """The keys of a sweep, which varies a single row by the command line; none of other grids."""
    words = [word.partition("=")[2] for word in overrides if word.startswith(f"{VARY}=")]
    return list(yaml_text.parse(words[-1], VARY)) if words and len(methods) == 1 else []


def _folder(name: str, overrides: Sequence[str], methods: Sequence[str], cell: Recipe) -> Path:
    """The campaign's folder. Grids of other models than the file's name theirs, and sweeps their
    row and keys, so that they leave the report of the whole grid alone."""
    words = [word.removeprefix("model=") for word in overrides if word.startswith("model=")]
    is_default = not words or words[-1] == recipe.model_of(name)
    title = [Path(name).stem, *([] if is_default else [cell.model.name])]
    if keys := swept(overrides, methods):
        title += [methods[0], "sweep", *(key.rpartition(".")[2] for key in keys)]
    return Path(cell.runs) / "-".join(title)


def read(path: Path) -> Plan:
    """A plan from its file on disk. Raises DamagedFile and FileNotFoundError, which name it."""
    remedy = "run `rib campaign` again, which writes it anew"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    plan = schema.convert(schema.read_unaltered(path, remedy), Plan, path, remedy)
    return dataclasses.replace(plan, path=path)


def report_page(plan: Plan) -> Path:
    """The HTML page of the campaign's report."""
    return plan.folder / REPORT / PAGE
