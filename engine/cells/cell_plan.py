"""A cell as it was planned: its recipe, and the recipes of the cells that it needs.

Nothing is resolved once a cell is planned, so a file that changes later changes no cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import recipe
from engine.errors import RecipeError
from engine.measures.setting import Scalar
from engine.recipe import catalogue, modules, overrides
from engine.recipe.overrides import Override
from engine.recipe.resolve import VARIANT, without_options
from engine.recipe.schema import Recipe

INSTEAD = {  # of keys that name several cells, what names a single one
    "methods": "method=NAME",
    "downstreams": "downstream=SET",
    "vary": "KEY=VALUE",
    "probe": "seed=NUMBER",
}


@dataclass(frozen=True)
class CellPlan:
    """A resolved recipe. needs: by method, the cells of its column that its method asks for."""

    recipe: Recipe
    needs: Mapping[str, CellPlan] = field(default_factory=dict)

    def on(self, downstream: str, settings: Mapping[str, Scalar]) -> CellPlan:
        """The cell on a set, with other values of some keys (`optimizer.lr`, `seed`).

        A method's own options are not those of the methods that it needs.
        """
        shared = {
            key: value
            for key, value in settings.items()
            if not key.startswith("method.") or key == VARIANT
        }
        needs = {name: need.on(downstream, shared) for name, need in self.needs.items()}
        cell = dataclasses.replace(self.recipe, downstream=downstream)
        for key, value in settings.items():
            section, _, name = key.rpartition(".")
            values: dict[str, Any] = {name: value}
            if section:
                values = {section: dataclasses.replace(getattr(cell, section), **values)}
            cell = dataclasses.replace(cell, **values)
        return CellPlan(cell, needs)

    def below(self, runs: Path) -> CellPlan:
        """The cell, with this folder of all outputs."""
        needs = {name: need.below(runs) for name, need in self.needs.items()}
        return CellPlan(dataclasses.replace(self.recipe, runs=str(runs)), needs)

    def seeded(self, seed: int) -> CellPlan:
        """The cell, and those that it needs, with another training seed."""
        return self.on(self.recipe.downstream, {"seed": seed})

    def all(self) -> Iterator[CellPlan]:
        """The cell and all that it needs, directly or not."""
        yield self
        for need in self.needs.values():
            yield from need.all()

    def dump(self) -> str:
        """The recipe as YAML, with what its method needs: a recipe again."""
        needed = {cell.recipe.method.name: cell.recipe for cell in self.all()}
        del needed[self.recipe.method.name]
        return recipe.dump(self.recipe, needed)

    def plain(self) -> dict[str, Any]:
        """The cell as JSON; `of_plain` reads it."""
        needs = {name: need.plain() for name, need in self.needs.items()}
        return {"recipe": dataclasses.asdict(self.recipe), "needs": needs}


def of_plain(values: Mapping[str, Any]) -> CellPlan:
    """The cell of a file. No method's module is imported: a user's options are those of the file.

    Raises RecipeError, KeyError and TypeError for anything but a cell.
    """
    needs = {name: of_plain(need) for name, need in values["needs"].items()}
    return CellPlan(recipe.of_values(values["recipe"]), needs)


@catalogue.each_file_once()
def resolve(
    name: str,
    given: Sequence[Override] = (),
    *,
    method: str | None = None,
    downstream: str | None = None,
    run_users: bool = False,
) -> CellPlan:
    """The cell of a recipe, as `recipe.load`.

    method: of a campaign, whose overrides may name several cells. run_users: whether users' files
    may run, without which nobody knows what their methods need. Raises RecipeError as
    `recipe.load`, for such overrides without a method, where a needed method mixes cells, and,
    where users' files may run, what a user's `check` refuses.
    """
    for each in given if method is None else ():
        if each.key in INSTEAD:
            raise RecipeError(
                f"{each.key}= is a word of `rib campaign`; a single cell takes {INSTEAD[each.key]}"
            )
    cell = recipe.load(name, given, method=method, downstream=downstream)
    return _with_needs(name, given, cell, run_users)


def _with_needs(name: str, given: Sequence[Override], cell: Recipe, run_users: bool) -> CellPlan:
    runs = run_users and modules.is_users(cell.method.module)
    options = modules.checked(cell, run_users=True) if runs else cell.method
    # A need is of the cell's variant and has none of the cell's options.
    kept = [each for each in without_options(given) if each.key != VARIANT]
    given = [*kept, *overrides.of_mapping({VARIANT: cell.method.variant})]
    needs = {}
    for method in options.needs:
        need = recipe.load(name, given, method=method, downstream=cell.downstream)
        complete = modules.complete(need.method, run_users=True) if run_users else need.method
        if not complete.has_weights:
            raise RecipeError(
                f"{options.name} needs {method}, which mixes cells and has no weights: "
                "name methods that train or merge"
            )
        needs[method] = _with_needs(name, given, need, run_users)
    return CellPlan(cell, needs)
