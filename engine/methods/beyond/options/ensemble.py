"""Options of output ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.errors import RecipeError
from engine.measures.rows import PRE
from engine.recipe import schema
from engine.recipe.schema import MethodRecipe


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    trains = False
    has_weights = False
    # methods whose outputs are averaged
    members: list[str] = field(default_factory=lambda: ["fine_tune", "ewc", "lwf"])

    @property
    def merged_models(self) -> int:
        return 0

    @property
    def needs(self) -> Sequence[str]:
        return [name for name in self.members if name != PRE]

    def check(self, cell: schema.Recipe) -> None:
        if len(self.members) < 2 or len(set(self.members)) < len(self.members):
            raise RecipeError(
                f"method.members={self.members}: name at least two different members, methods or "
                "`pretrained`"
            )
