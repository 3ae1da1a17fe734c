"""Options of Model Stock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.errors import RecipeError
from engine.methods.beyond.options.ties import MembersRecipe
from engine.recipe import schema
from engine.recipe.schema import Number

# The step between a member's seeds. A campaign has at most 1000 seeds (`schema.Thousand`), all
# consecutive, so two of its seeds share no member, and intervals over seeds see independent stocks.
APART = 1000


@dataclass(frozen=True)
class Recipe(MembersRecipe):
    # methods whose models are averaged
    members: list[str] = field(default_factory=lambda: ["fine_tune"])
    seeds: Number = 2  # of each member: the recipe's seed, seed + 1000, seed + 2000, ...

    def member_seeds(self, first: int) -> Sequence[int]:
        return [first + APART * number for number in range(self.seeds)]

    def check(self, cell: schema.Recipe) -> None:
        super().check(cell)
        if len(self.members) * self.seeds < 2:
            raise RecipeError(
                f"method.members={self.members} with method.seeds={self.seeds}: Model Stock needs "
                "at least two models; raise method.seeds or name more members"
            )
