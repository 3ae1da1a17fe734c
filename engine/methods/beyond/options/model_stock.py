"""Options of Model Stock."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.errors import RecipeError
from engine.methods.beyond.options.ties import MembersRecipe
from engine.recipe import schema
from engine.recipe.schema import Number


@dataclass(frozen=True)
class Recipe(MembersRecipe):
    # methods whose models are averaged
    members: list[str] = field(default_factory=lambda: ["fine_tune"])
    seeds: Number = 2  # of each member: the recipe's seed, seed + 1000, seed + 2000, ...

    def check(self, cell: schema.Recipe) -> None:
        super().check(cell)
        if len(self.members) * self.seeds < 2:
            raise RecipeError(
                f"method.members={self.members} with method.seeds={self.seeds}: Model Stock needs "
                "at least two models; raise method.seeds or name more members"
            )
