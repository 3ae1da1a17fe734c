"""The columns of a campaign: its downstream datasets, each in every hyperparameter setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.campaigns.plan import SEED, Column
from engine.errors import RecipeError
from engine.measures.rows import TRIAL, Scalar, Setting, trained_sets
from engine.recipe.campaigns import DOWNSTREAMS, REPLICATES, TRIALS, VARY
from engine.recipe.checks import union_name
from engine.recipe.effects import effect_of
from engine.recipe.grid_keys import GridKeys
from engine.recipe.resolve import varied_recipe
from engine.recipe.schema import VARIANT, Affects, DatasetRecipe, Recipe
from engine.recipe.typed import text, value_of

FIXED = {f"method.{name}" for name in ("name", "title", "module")}  # they identify the method
MOST = 10_000  # columns; more indicate a mistake in `param_grid`
LONGEST = 200  # bytes of a column's name; file names contain it and have at most 255


def columns_of(grid: GridKeys, cells: Sequence[Recipe]) -> tuple[Column, ...]:
    """The columns of a campaign, dataset by dataset, then its replicates.

    cells: one resolved recipe per method, with which every setting is checked. Raises RecipeError,
    naming the campaign's file or the command line, for a dataset that is unknown, named twice or
    not licensed for fine-tuning, for a union of all datasets of RI, for a key or value that cannot
    vary, and for more than `MOST` columns.
    """
    dataset = cells[0].dataset
    downstreams = _downstreams(grid, dataset)
    source = grid.source(VARY)
    _check_keys(source, grid.param_grid, cells)
    trials: list[dict[str, Scalar]] = [{TRIAL: trial} for trial in range(grid.trials)] or [{}]
    count = len(downstreams) * math.prod(map(len, grid.param_grid.values())) * len(trials)
    if count > MOST:
        source = grid.source(TRIALS if TRIALS in grid.given else VARY)
        raise RecipeError(
            f"{source}: param_grid and trials make {count:,} columns; {MOST:,} at most"
        )
    settings = [
        dict(zip(grid.param_grid, values, strict=True))
        for values in itertools.product(*grid.param_grid.values())
    ]
    try:
        for (key, values), cell in itertools.product(grid.param_grid.items(), cells):
            _check_twice(key, values, cell)
        for setting, cell in itertools.product(settings, cells):
            varied_recipe(cell, setting)
    except RecipeError as error:
        raise RecipeError(f"{source} (param_grid): {error}") from error
    columns = []
    for downstream, given, trial in itertools.product(downstreams, settings, trials):
        values = {key: value_of(cells[0], key, value) for key, value in given.items()}
        column = Column(downstream, Setting({**values, **trial}))
        if len(column.name.encode()) > LONGEST:
            raise RecipeError(
                f"{source}: param_grid: the column's name {column.name} exceeds {LONGEST} bytes, "
                "too long for a file's name; vary fewer keys"
            )
        columns.append(column)
    return (*columns, *_replicates(grid, downstreams, cells))


def _replicates(
    grid: GridKeys, downstreams: Sequence[str], cells: Sequence[Recipe]
) -> list[Column]:
    """Columns that are trained again with the next seed: the middle one, or several spread evenly.

    `engine.measures.seeds` estimates the variance between training seeds from the difference.
    Campaigns list datasets from near to far. There are no replicates if seeds, settings or trials
    vary, or with a single row or no more columns than replicates. Raises RecipeError if the command
    line requests replicates then.
    """
    first, obstacle = cells[0], ""
    if grid.param_grid or grid.trials or first.seeds > 1:
        obstacle = f"{VARY}, {TRIALS} or several seeds"
    elif len(cells) == 1 or len(downstreams) <= grid.replicates:
        obstacle = f"{len(cells)} of a campaign's rows and {len(downstreams)} of its columns"
    if obstacle and grid.replicates and REPLICATES in grid.given:
        raise RecipeError(
            f"{grid.source(REPLICATES)}: {REPLICATES}={grid.replicates} needs at least two rows, "
            "a single seed and setting, and more columns than replicates, and does not work with "
            f"{obstacle}; leave it out"
        )
    count = 0 if obstacle else grid.replicates
    middles = [(2 * k + 1) * len(downstreams) // (2 * count) for k in range(count)]
    seed = Setting({SEED: first.seed + 1})
    return [Column(downstreams[middle], seed, is_replicate=True) for middle in middles]


def _downstreams(grid: GridKeys, dataset: DatasetRecipe) -> list[str]:
    """The names of the datasets and unions that columns train on."""
    key = f"{grid.source(DOWNSTREAMS)}: {DOWNSTREAMS}"
    downstreams = [union_name(key, names, dataset) for names in grid.trained_on(dataset)]
    for name in downstreams:
        if downstreams.count(name) > 1:
            raise RecipeError(f"{key} names {name} twice")
        if {*dataset.sets} <= {*trained_sets(name)}:
            raise RecipeError(
                f"{key}: {name} contains all of dataset.sets, so RI has no dataset left: leave one "
                "out"
            )
    return downstreams


def _check_keys(source: str, grid: Mapping[str, Sequence[Any]], cells: Sequence[Recipe]) -> None:
    """Raise RecipeError for a key that cannot vary, or without a list of plain values."""
    for key, values in grid.items():
        is_option = key.startswith("method.") and key != VARIANT
        is_fixed = key in FIXED or (is_option and len(cells) > 1)
        if is_fixed or effect_of(key) is not Affects.CELL:
            raise RecipeError(
                f"{source}: param_grid: {key} cannot vary; keys of optimizer and train can, and "
                f"dataset.shots, dataset.fraction, {VARIANT}, {SEED}. To vary a method's option, "
                "select its row alone (`methods=[ROW]`) or add a row per value (`base`). To vary a "
                "key that all columns share, make one campaign per value"
            )
        if not isinstance(values, list) or not values:
            raise RecipeError(
                f"{source}: param_grid: {key} needs a list of values, as in `{key}: [1, 2]`"
            )
        for value in values:
            is_safe = not isinstance(value, str) or value.replace("_", "").isalnum()
            if not isinstance(value, Scalar) or not is_safe:
                raise RecipeError(
                    f"{source}: param_grid: {key} cannot be {value!r}; values are numbers, true, "
                    "false or words of letters, digits and _, because file names contain them"
                )
        if key == SEED and cells[0].seeds > 1:
            raise RecipeError(
                f"{source}: param_grid: seed and seeds={cells[0].seeds} both set the seeds; "
                "use only one"
            )


def _check_twice(key: str, values: Sequence[Any], cell: Recipe) -> None:
    """Raise RecipeError if two values are equal once converted to the key's type."""
    before: dict[Any, Any] = {}
    for value in values:
        typed = value_of(cell, key, value)
        if typed in before:
            texts = list(map(text, (before[typed], value)))
            same = "" if texts[0] == texts[1] else f", as {' and '.join(texts)}"
            raise RecipeError(f"{key} names {text(typed)} twice{same}")
        before[typed] = value
