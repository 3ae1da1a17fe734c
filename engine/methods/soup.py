"""Model soups: average the weights of several cells (Wortsman et al. 2022b).

`uniform` averages all members. `greedy` starts from the member with the highest accuracy on the
downstream held-out split. It then tries the other members from best to worst, and keeps each one
that does not lower the soup's held-out accuracy. `greedy` raises an error without a held-out split.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.measures.rows import PRE
from engine.methods.base import Context, Derived
from engine.methods.options.soup import NO_HOLDOUT, Recipe
from engine.store.cells import Entry


def uniform(members: Sequence[str]) -> dict[str, float]:
    """Equal weights by member. A member that is named twice counts twice."""
    return {name: members.count(name) / len(members) for name in members}


class Method(Derived):
    recipe: Recipe

    def make(self, context: Context) -> Sequence[Entry]:
        greedy = self.recipe.select == "greedy"
        if greedy and not len(context.target.holdout):
            raise ValueError(f"{NO_HOLDOUT}; {context.target.name} has no held-out images")
        cells = [
            context.base.name if name == PRE else context.cell(name).name
            for name in self.recipe.members
        ]
        for cell in map(context.cell, self.recipe.needs) if len(set(cells)) > 1 else ():
            if cell.prompt() is not None:
                raise ValueError(f"{cell.name} has an input prompt and cannot be averaged")
        return [Entry(uniform(self._greedy(cells, context) if greedy else cells))]

    @staticmethod
    def _greedy(cells: Sequence[str], context: Context) -> list[str]:
        alone = {name: context.holdout_accuracy({name: 1.0}) for name in cells}
        ranked = sorted(alone, key=lambda name: -alone[name])
        soup, best = ranked[:1], alone[ranked[0]]
        for name in ranked[1:]:
            accuracy = context.holdout_accuracy(uniform([*soup, name]))
            if accuracy >= best:
                soup, best = [*soup, name], accuracy
        return soup
