"""WiSE-FT: weights between the pre-trained and the fine-tuned model (Wortsman et al. 2022).

theta(alpha) = (1 - alpha) * theta_pre + alpha * theta_ft. `canonical` evaluates a grid of alphas,
`paper` a single alpha; the table's row is the recipe's `alpha`, chosen before any result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.measures.rows import DEFAULT_ALPHA
from engine.methods.base import Mixed
from engine.methods.context import Context
from engine.recipe import schema
from engine.recipe.checks import in_range
from engine.store.cells import Entry


@dataclass(frozen=True)
class Recipe(schema.MethodRecipe):
    alpha: float = DEFAULT_ALPHA  # the table's row, evaluated whether or not `alphas` holds it
    alphas: list[float] = field(default_factory=lambda: [i / 10 for i in range(11)])

    def check(self, cell: schema.Recipe) -> None:
        for key, values in (("method.alpha", [self.alpha]), ("method.alphas", self.alphas)):
            for value in values:
                in_range(key, value, 0, 1)


class Method(Mixed):
    recipe: Recipe
    needs = ("fine_tune",)

    @property
    def mixes(self) -> int:
        return len(self._alphas())

    def entries(self, context: Context) -> Sequence[Entry]:
        before, after = context.base.name, context.cell("fine_tune").name
        return [
            Entry({before: 1 - alpha, after: alpha}, alpha, alpha == self.recipe.alpha)
            for alpha in sorted(self._alphas())
        ]

    def _alphas(self) -> set[float]:
        curve = self.recipe.alphas if self.recipe.variant == "canonical" else ()
        return {self.recipe.alpha, *curve}
