"""Output ensembles: the mean of cells' logits, the baseline of soups (Wortsman et al. 2022b).

Each cell keeps its weights, so input prompts are allowed. The mean is taken in fp32 over all
outputs of the head. If the members are evaluated in the same pass, it costs no forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from engine.measures.rows import PRE
from engine.methods.base import Context, Derived
from engine.methods.beyond.options.ensemble import Recipe
from engine.store.cells import Ensemble, Entry


class Method(Derived):
    recipe: Recipe
    weights: Literal["equal", "entropy"] = "equal"  # as in `Ensemble`

    def make(self, context: Context) -> Sequence[Entry]:
        cells = [
            context.base if name == PRE else context.cell(name) for name in self.recipe.members
        ]
        return [Entry(Ensemble(tuple(cell.name for cell in cells), self.weights))]
