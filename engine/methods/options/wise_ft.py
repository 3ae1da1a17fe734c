"""Options of WiSE-FT."""

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
