"""The plan of a cell: its resolved recipe, and those of the cells that it needs.

Planning resolves everything, so later changes to recipe files do not affect a planned cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import RecipeError
from engine.measures.rows import Scalar
from engine.recipe import catalogue, kinds, modules, overrides
from engine.recipe.overrides import Override
from engine.recipe.resolve import VARIANT, load_recipe, without_options
from engine.recipe.schema import Recipe
from engine.recipe.trials import TRIAL, trials_of
from engine.recipe.typed import dump_recipe

INSTEAD = {  # by key of a campaign, the override that selects a single cell
    "methods": "method=NAME",
    "downstreams": "downstream=SET",
    "vary": "KEY=VALUE",
    "replicates": "seed=NUMBER",
    "trials": "KEY=VALUE",
}


@dataclass(frozen=True)
class CellPlan:
    """A resolved recipe. needs: the cells of its column that its method needs, by method. trials:
    as `engine.recipe.trials.trials_of`; empty without trials."""

    recipe: Recipe
    needs: Mapping[str, CellPlan] = field(default_factory=dict)
    trials: tuple[Mapping[str, Scalar], ...] = ()

    def with_trials(self, count: int) -> CellPlan:
        """The cell, and those that it needs, with `count` trials."""
        needs = {name: need.with_trials(count) for name, need in self.needs.items()}
        return CellPlan(self.recipe, needs, trials_of(self.recipe, count))

    def on(self, downstream: str, settings: Mapping[str, Scalar]) -> CellPlan:
        """The cell on another dataset, with other values of some keys (`optimizer.lr`, `seed`).

        The values apply to the needed cells too, except the method's own options. Of a trial,
        each cell has its own values.
        """
        shared = {
            key: value
            for key, value in settings.items()
            if not key.startswith("method.") or key == VARIANT
        }
        needs = {name: need.on(downstream, shared) for name, need in self.needs.items()}
        cell = dataclasses.replace(self.recipe, downstream=downstream)
        given = {key: value for key, value in settings.items() if key != TRIAL}
        of_trial = self.trials[int(settings[TRIAL])] if TRIAL in settings else {}
        for key, value in {**of_trial, **given}.items():
            section, _, name = key.rpartition(".")
            values: dict[str, Any] = {name: value}
            if section:
                values = {section: dataclasses.replace(getattr(cell, section), **values)}
            cell = dataclasses.replace(cell, **values)
        return CellPlan(cell, needs)

    def below(self, runs: Path) -> CellPlan:
        """The cell, and those that it needs, with another runs folder."""
        needs = {name: need.below(runs) for name, need in self.needs.items()}
        recipe = dataclasses.replace(self.recipe, runs=str(runs))
        return dataclasses.replace(self, recipe=recipe, needs=needs)

    def seeded(self, seed: int) -> CellPlan:
        """The cell, and those that it needs, with another training seed."""
        return self.on(self.recipe.downstream, {"seed": seed})

    def all(self) -> Iterator[CellPlan]:
        """The cell and all cells that it needs, directly or indirectly."""
        yield self
        for need in self.needs.values():
            yield from need.all()

    @property
    def runs_users(self) -> bool:
        """Whether making the cell, or one that it needs, runs a user's method file."""
        return any(modules.is_users(cell.recipe.method.module) for cell in self.all())

    def dump(self) -> str:
        """The recipe and those of the needed cells, as YAML that loads as a recipe."""
        needed = {cell.recipe.method.name: cell.recipe for cell in self.all()}
        del needed[self.recipe.method.name]
        return dump_recipe(self.recipe, needed)


def of_plain(values: Mapping[str, Any]) -> CellPlan:
    """The cell of these values, as `dataclasses.asdict` made them (also through JSON).

    Runs no user's method file: its options stay as stored. Raises msgspec.ValidationError for
    values of other types, and KeyError for an unknown method module.
    """
    cell, method = msgspec.convert(values, CellPlan), values["recipe"]["method"]
    options = msgspec.convert(method, modules.planned_options(method))
    dataset = values["recipe"]["dataset"]
    dataset = msgspec.convert(dataset, kinds.planned_options(dataset))
    needs = {name: of_plain(need) for name, need in values["needs"].items()}
    recipe = dataclasses.replace(cell.recipe, method=options, dataset=dataset)
    return dataclasses.replace(cell, recipe=recipe, needs=needs)


@catalogue.each_file_once()
def resolve(
    name: str,
    given: Sequence[Override] = (),
    *,
    method: str | None = None,
    downstream: str | None = None,
    run_users: bool = False,
) -> CellPlan:
    """Resolve the cell of a recipe, and the cells that it needs.

    Args:
        name, given, downstream: as in `load_recipe`.
        method: the row of a campaign. Only then may `given` hold a campaign's keys (`INSTEAD`).
        run_users: run users' method files. Without it, the needs of their methods are unknown.

    Raises RecipeError as `load_recipe` does, for a campaign's keys without `method`, if a needed
    method has no weights, and, with `run_users`, if a user's `check` raises it.
    """
    for each in given if method is None else ():
        if each.key in INSTEAD:
            raise RecipeError(
                f"{each.key}= applies to `rib campaign`; for a single cell, use {INSTEAD[each.key]}"
            )
    cell = load_recipe(name, given, method=method, downstream=downstream)
    return _with_needs(name, given, cell, run_users)


def _with_needs(name: str, given: Sequence[Override], cell: Recipe, run_users: bool) -> CellPlan:
    runs = run_users and modules.is_users(cell.method.module)
    options = modules.checked(cell, run_users=True) if runs else cell.method
    # Needed cells share the cell's variant, but not its method's other options.
    kept = [each for each in without_options(given) if each.key != VARIANT]
    given = [*kept, *overrides.of_mapping({VARIANT: cell.method.variant})]
    needs = {}
    for method in options.needs:
        need = load_recipe(name, given, method=method, downstream=cell.downstream)
        complete = modules.complete(need.method, run_users=True) if run_users else need.method
        if not complete.has_weights:
            raise RecipeError(
                f"{options.name} needs {method}, which averages cells and has no weights of its "
                "own: name methods that train or merge"
            )
        needs[method] = _with_needs(name, given, need, run_users)
    return CellPlan(cell, needs)
