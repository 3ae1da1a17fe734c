"""Plan a cell: resolve its recipe, and those of the cells that its method needs."""

from __future__ import annotations

from collections.abc import Sequence

from engine.cells.cell_plan import CellPlan
from engine.errors import RecipeError
from engine.recipe import catalogue, methods, overrides
from engine.recipe.finder import is_users, users_files_allowed
from engine.recipe.methods import METHODS
from engine.recipe.overrides import Override
from engine.recipe.resolve import load_recipe, without_options
from engine.recipe.schema import VARIANT, Recipe
from engine.recipe.trials import trials_of

INSTEAD = {  # by key of a campaign, the override that selects a single cell
    "methods": "method=NAME",
    "downstreams": "downstream=SET",
    "param_grid": "KEY=VALUE",
    "replicates": "seed=NUMBER",
    "trials": "KEY=VALUE",
}


@catalogue.each_file_once()
def plan_cell(
    name: str,
    given: Sequence[Override] = (),
    *,
    method: str | None = None,
    downstream: str | None = None,
    trials: int = 0,
) -> CellPlan:
    """Resolve the cell of a recipe, and the cells that it needs.

    A user's method file runs if it may (`allow_users_files`); else the method's needs are unknown.

    Args:
        name, given, downstream: as in `load_recipe`.
        method: the row of a campaign. Only then may `given` hold a campaign's keys (`INSTEAD`).
        trials: their number, of this cell and of those that it needs (`trials_of`).

    Raises RecipeError as `load_recipe` does, for a campaign's keys without `method`, if a needed
    method has no weights, and if a user's `check` raises it.
    """
    for each in given if method is None else ():
        if each.key in INSTEAD:
            raise RecipeError(
                f"{each.key}= applies to `rib campaign`; for a single cell, use {INSTEAD[each.key]}"
            )
    cell = load_recipe(name, given, method=method, downstream=downstream)
    return _with_needs(name, given, cell, trials)


def _with_needs(name: str, given: Sequence[Override], cell: Recipe, trials: int) -> CellPlan:
    runs = users_files_allowed() and is_users(cell.method.module)
    options = methods.checked(cell) if runs else cell.method
    # Needed cells share the cell's variant, but not its method's other options.
    kept = [override for override in without_options(given) if override.key != VARIANT]
    given = [*kept, *overrides.of_mapping({VARIANT: cell.method.variant})]
    needs = {}
    for method in options.needs:
        need = load_recipe(name, given, method=method, downstream=cell.downstream)
        complete = METHODS.complete(need.method) if users_files_allowed() else need.method
        if not complete.has_weights:
            raise RecipeError(
                f"{options.name} needs {method}, which averages cells and has no weights of its "
                "own: name methods that train or merge"
            )
        needs[method] = _with_needs(name, given, need, trials)
    return CellPlan(cell, needs, trials_of(cell, trials))
