"""WiSE-FT at the alpha that held-out downstream images choose.

theta(alpha) = (1 - alpha) * theta_pre + alpha * theta_ft. The cell is the interpolation with the
highest accuracy on the downstream held-out split, and of equally accurate ones that with the
smallest alpha. `wise_ft` (Wortsman et al. 2022) instead shows an alpha that is fixed before any
result.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.methods.base import Context, Derived
from engine.methods.beyond.options.wise_ft_tuned import NO_HOLDOUT, Recipe
from engine.store.cells import Entry


class Method(Derived):
    recipe: Recipe

    def make(self, context: Context) -> Sequence[Entry]:
        if not len(context.target.holdout):
            raise ValueError(f"{NO_HOLDOUT}; {context.target.name} has no held-out images")
        before, after = context.base.name, context.cell("fine_tune").name
        mixes = [{before: 1 - alpha, after: alpha} for alpha in sorted(self.recipe.alphas)]
        return [Entry(max(mixes, key=context.holdout_accuracy))]  # the first of equal ones
