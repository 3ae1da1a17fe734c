"""A campaign: the whole grid of one model, planned before anything runs.

Every cell is resolved first, so that a mistake is found before any work is done. What is finished
is told by the artefacts' own markers; `engine.grid.workflow` runs what is not.
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
from engine.machine.files import digest
from engine.recipe.schema import Recipe
from engine.store import artifacts
from loaders.files import file_hash

REPORT, TABLE = "report", "table.txt"
RECORD = "evaluations.json"  # beside a plan: what its report is made of
STAMP = "plan"  # beside a report: the name of the plan it shows


@dataclass(frozen=True)
class Plan:
    """What a campaign will do; `folder` holds its plan, progress, log and report."""

    name: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    sets: tuple[str, ...]
    folder: Path
    threads: int
    seeds: int = 1
    path: Path = Path()  # on disk, in a folder named after everything that determines the results


def plan(name: str, overrides: Sequence[str], cores: int) -> Plan:
    """Resolve every cell of a campaign, so that a mistake is found before any work is done.

    Raises RecipeError for anything that cannot be resolved, or too few cores, sets or methods.
    """
    if cores < 1:
        raise RecipeError(f"--cores {cores}: at least one is needed")
    _refuse_one_cell(overrides)
    methods = recipe.methods_of(name, overrides)
    cells = [recipe.load(name, overrides, method=method) for method in methods]
    for cell in cells:
        _check_siblings(name, overrides, cell)
    sets = tuple(cells[0].dataset.sets)
    if len(sets) < 2:
        raise RecipeError(f"dataset.sets={list(sets)}: a campaign needs two sets or more")
    if cells[0].dataset.holdout and cells[0].evaluate.split != "holdout":
        raise RecipeError(
            f"dataset.holdout={cells[0].dataset.holdout:g}: a campaign judges cells on the same "
            "images; set evaluate.split=holdout, or dataset.holdout=0 to hold none out"
        )
    folder = Path(cells[0].runs) / _title(name, overrides, cells[0].model.name)
    identity = _identity(cells, [_settings(cell) for cell in cells])
    return Plan(
        name,
        tuple(overrides),
        tuple(methods),
        sets,
        folder,
        threads=max(cells[0].threads, cores // len(sets)),
        seeds=cells[0].seeds,
        path=folder.resolve() / "plans" / identity / "plan.json",
    )


def _refuse_one_cell(overrides: Sequence[str]) -> None:
    """Words that speak of one method or one set would be without effect on a grid of them all."""
    for word in overrides:
        key = word.partition("=")[0]
        whole = key in (recipe.SELECTION, "method.variant")
        if not whole and key.partition(".")[0] in ("method", recipe.SELECTION):
            raise RecipeError(
                f"{word!r}: a campaign trains several methods; name some by methods=[A,B], and "
                "set the options of one below `methods:` in a campaign file of your own"
            )
        if key == "downstream":
            raise RecipeError(
                f"{word!r}: a campaign trains on all its sets; name some by dataset.sets=[A,B], "
                "or train one cell by engine/launch.py"
            )


def _check_siblings(name: str, overrides: Sequence[str], cell: Recipe) -> None:
    """Raise RecipeError where a method is made of methods that do not exist or do not train."""
    from engine.methods import base  # and torch, which a finished campaign does without

    for one in base.siblings(
        cell.method, lambda method: recipe.load(name, overrides, method=method)
    ):
        _check_siblings(name, overrides, one)


def asked(name: str, overrides: Sequence[str]) -> tuple[Path, str]:
    """Folder of a campaign, and a digest of what its files and words say.

    Needs no method's module, and so no torch: by it a finished campaign is found again.
    """
    _refuse_one_cell(overrides)
    methods = recipe.methods_of(name, overrides)
    outlines = [recipe.outline(name, overrides, method) for method in methods]
    cells = [cell for cell, _ in outlines]
    settings = [_settings(cell) | {"own": _by_name(section)} for cell, section in outlines]
    folder = Path(cells[0].runs) / _title(name, overrides, cells[0].model.name)
    return folder, _identity(cells, settings)


def _identity(cells: Sequence[Recipe], settings: Sequence[Mapping[str, Any]]) -> str:
    modules = [Path(cell.method.module) for cell in cells if cell.method.module.endswith(".py")]
    hashes = [file_hash(path) for path in modules]
    return digest({"format": artifacts.FORMAT, "cells": list(settings), "files": hashes})


def _settings(cell: Recipe) -> dict[str, Any]:
    """What of a cell's recipe can change results: not how a folder or a file is spelled."""
    values = dataclasses.asdict(cell)
    del values["runs"], values["campaign"]
    return values | {"method": _by_name(values["method"])}


def _by_name(section: Mapping[str, Any]) -> dict[str, Any]:
    """A method's section; of a user's module the file's name, beside the hash of what it holds."""
    module = str(section["module"])
    return {**section, "module": Path(module).name if module.endswith(".py") else module}


def _title(name: str, overrides: Sequence[str], model: str) -> str:
    """Of the campaign's folder: grids of several models stand side by side and share packs."""
    asked = [word.removeprefix("model=") for word in overrides if word.startswith("model=")]
    own = not asked or asked[-1] == recipe.model_of(name)
    return Path(name).stem if own else f"{Path(name).stem}-{model}"


def read(path: Path) -> Plan:
    """A plan as a job finds it on disk."""
    values = json.loads(path.read_text())
    fields: dict[str, Any] = {f.name: values[f.name] for f in dataclasses.fields(Plan)}
    for name in ("overrides", "methods", "sets"):
        fields[name] = tuple(fields[name])
    fields |= {"folder": Path(fields["folder"]), "path": path}
    return Plan(**fields)


def finished(the_plan: Plan) -> bool:
    """Whether the report that stands in the folder is that of exactly this plan."""
    page, place = report_page(the_plan), the_plan.path.parent
    stamp = page.with_name(STAMP)
    table = page.with_name(TABLE)
    needed = (place / "done" / "report", place / RECORD, page, table, stamp)
    return all(file.is_file() for file in needed) and stamp.read_text() == place.name


def report_page(the_plan: Plan) -> Path:
    """The page that a campaign ends with."""
    return the_plan.folder / REPORT / "index.html"
