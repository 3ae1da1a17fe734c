"""WiSE-FT: interpolates the weights of the pretrained and fine-tuned models.

theta(alpha) = (1 - alpha) * theta_pre + alpha * theta_ft (Wortsman et al. 2022). `original`
evaluates a grid of alphas, `released` a single alpha. The result tables show the recipe's `alpha`,
which is fixed before any result.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.methods.base import Context, Derived
from engine.methods.options.wise_ft import Recipe
from engine.store.cells import Entry


class Method(Derived):
    recipe: Recipe

    def make(self, context: Context) -> Sequence[Entry]:
        before, after = context.base.name, context.cell("fine_tune").name
        return [
            Entry({before: 1 - alpha, after: alpha}, alpha, alpha == self.recipe.alpha)
            for alpha in self.recipe.evaluated_alphas
        ]
