"""The plan of a cell: its resolved recipe, and those of the cells that it needs.

`plan_cell` resolves everything, so later changes to recipe files do not affect a planned cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine.measures.rows import TRIAL, Scalar
from engine.recipe.finder import is_users
from engine.recipe.kinds import KINDS
from engine.recipe.methods import METHODS
from engine.recipe.schema import VARIANT, Recipe
from engine.recipe.typed import dump_recipe


@dataclass(frozen=True)
class CellPlan:
    """A resolved recipe. needs: the cells of its column that its method needs, by method. trials:
    as `engine.recipe.trials.trials_of`; empty without trials."""

    recipe: Recipe
    needs: Mapping[str, CellPlan] = field(default_factory=dict)
    trials: tuple[Mapping[str, Scalar], ...] = ()

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

    def trained(self) -> Iterator[CellPlan]:
        """The cells of `all`, each needed one with every seed that the method needing it asks."""
        yield self
        for need in self.needs.values():
            for seed in self.recipe.method.member_seeds(self.recipe.seed):
                same = seed == need.recipe.seed
                yield from (need if same else need.seeded(seed)).trained()

    @property
    def runs_users(self) -> bool:
        """Whether making the cell, or one that it needs, runs a user's method file."""
        return any(is_users(cell.recipe.method.module) for cell in self.all())

    def dump(self) -> str:
        """The recipe and those of the needed cells, as YAML that loads as a recipe."""
        needed = {cell.recipe.method.name: cell.recipe for cell in self.all()}
        del needed[self.recipe.method.name]
        return dump_recipe(self.recipe, needed)


def cell_of_plain(values: Mapping[str, Any]) -> CellPlan:
    """The cell of these values, as `dataclasses.asdict` made them (also through JSON).

    Runs no user's method file: its options stay as stored. Raises msgspec.ValidationError for
    values of other types, and KeyError for an unknown method module.
    """
    cell, method = msgspec.convert(values, CellPlan), values["recipe"]["method"]
    options = msgspec.convert(method, METHODS.planned(method))
    dataset = values["recipe"]["dataset"]
    dataset = msgspec.convert(dataset, KINDS.planned(dataset))
    needs = {name: cell_of_plain(need) for name, need in values["needs"].items()}
    recipe = dataclasses.replace(cell.recipe, method=options, dataset=dataset)
    return dataclasses.replace(cell, recipe=recipe, needs=needs)
