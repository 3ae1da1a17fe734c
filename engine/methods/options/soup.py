"""Options of model soups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.errors import RecipeError
from engine.measures.rows import PRE
from engine.recipe import schema
from engine.recipe.schema import MethodRecipe

NO_HOLDOUT = "a greedy soup is selected on held-out downstream images; set dataset.holdout above 0"


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    trains = False
    has_weights = False
    # uniform: average all members; greedy: add a member if held-out accuracy does not fall
    select: Literal["uniform", "greedy"] = "uniform"
    # methods whose models are averaged, and `pretrained`
    members: list[str] = field(default_factory=lambda: [PRE, "fine_tune", "ewc", "lwf"])

    @property
    def needs(self) -> Sequence[str]:
        return [name for name in self.members if name != PRE]

    def check(self, cell: schema.Recipe) -> None:
        if not self.members:
            raise RecipeError("method.members is empty; name at least one method or `pretrained`")
        if self.select == "greedy" and not cell.dataset.holdout:
            raise RecipeError(NO_HOLDOUT)
