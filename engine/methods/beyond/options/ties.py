"""Options of TIES merging and task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.errors import RecipeError
from engine.recipe import schema
from engine.recipe.schema import MethodRecipe, NotNegative, Part, searched


@dataclass(frozen=True)
class MembersRecipe(MethodRecipe):
    """The options of methods that merge cells of other methods."""

    trains = False
    members: list[str] = field(default_factory=lambda: ["fine_tune", "ewc", "lwf"])

    @property
    def needs(self) -> Sequence[str]:
        return self.members

    def check(self, cell: schema.Recipe) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise RecipeError(f"method.members={self.members}: name one or more methods, each once")


@dataclass(frozen=True)
class Recipe(MembersRecipe):
    density: Part = 0.2  # fraction of each task vector's entries to keep, over all parameters
    elect: bool = True  # False: add the trimmed vectors
    scale: NotNegative = searched(1.0, 3)  # of the merged task vector
