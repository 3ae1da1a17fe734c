"""Options of WiSE-FT with a chosen alpha."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.errors import RecipeError
from engine.recipe import schema
from engine.recipe.schema import MethodRecipe, Unit

NO_HOLDOUT = "alpha is chosen on held-out downstream images; set dataset.holdout above 0"


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    has_weights = False
    # weights of the fine-tuned model to choose from
    alphas: list[Unit] = field(default_factory=lambda: [i / 10 for i in range(11)])

    def check(self, cell: schema.Recipe) -> None:
        if not self.alphas:
            raise RecipeError("method.alphas is empty; name at least one number between 0 and 1")
        if not cell.dataset.holdout:
            raise RecipeError(NO_HOLDOUT)
