"""WiSE-FT: interpolates the weights of the pretrained and fine-tuned models.

theta(alpha) = (1 - alpha) * theta_pre + alpha * theta_ft (Wortsman et al. 2022). `original`
evaluates a grid of alphas, `released` a single alpha. The result tables show the recipe's `alpha`,
which is fixed before any result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.measures.rows import DEFAULT_ALPHA
from engine.recipe.schema import MethodRecipe, Unit


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    needs = ("fine_tune",)
    trains = False
    has_weights = False
    alpha: Unit = DEFAULT_ALPHA  # shown in tables; evaluated even if it is not in `alphas`
    # weights of the fine-tuned model that are evaluated
    alphas: list[Unit] = field(default_factory=lambda: [i / 10 for i in range(11)])

    @property
    def evaluated_alphas(self) -> list[float]:
        curve = self.alphas if self.variant == "original" else ()
        return sorted({self.alpha, *curve})

    @property
    def merged_models(self) -> int:
        return len(self.evaluated_alphas)


from collections.abc import Sequence

from engine.methods.base import Context, Derived
from engine.store.cells import Entry


class Method(Derived):
    recipe: Recipe

    def make(self, context: Context) -> Sequence[Entry]:
        before, after = context.base.name, context.cell("fine_tune").name
        return [
            Entry({before: 1 - alpha, after: alpha}, alpha, alpha == self.recipe.alpha)
            for alpha in self.recipe.evaluated_alphas
        ]
