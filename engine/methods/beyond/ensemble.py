"""Output ensembles: the mean of cells' logits, the baseline of soups (Wortsman et al. 2022b).

Each cell keeps its weights, so input prompts are allowed. The mean is taken in fp32 over all
outputs of the head. If the members are evaluated in the same pass, it costs no forward pass.
"""

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
                "`pre`"
            )


from typing import Literal

from engine.methods.base import Context, Derived
from engine.store.cells import Ensemble, Entry


class Method(Derived):
    recipe: Recipe
    weights: Literal["equal", "entropy"] = "equal"  # as in `Ensemble`

    def make(self, context: Context) -> Sequence[Entry]:
        cells = [
            context.base if name == PRE else context.cell(name) for name in self.recipe.members
        ]
        return [Entry(Ensemble(tuple(cell.name for cell in cells), self.weights))]
