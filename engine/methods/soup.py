"""Model soups: weights averaged over several cells (Wortsman et al. 2022b).

`uniform` averages all members. `greedy` starts from the member that is best on the downstream
hold-out and keeps each further one that does not lower the soup's hold-out accuracy; it needs a
hold-out and is refused without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.methods.base import Entry, Mixed
from engine.schema import MethodRecipe

if TYPE_CHECKING:
    from engine.context import Context


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    select: str = "uniform"  # uniform | greedy
    members: list[str] = field(default_factory=lambda: ["pre", "fine_tune", "ewc", "lwf"])


def uniform(members: Sequence[str]) -> dict[str, float]:
    """Equal weights."""
    return {name: 1 / len(members) for name in members}


class Method(Mixed):
    recipe: Recipe

    @property
    def needs(self) -> Sequence[str]:
        return [name for name in self.recipe.members if name != "pre"]

    def entries(self, context: Context) -> Sequence[Entry]:
        if not self.recipe.members:
            raise ValueError("method.members is empty; name at least one method or `pre`")
        cells = [
            context.base.name if name == "pre" else context.cell(name).name
            for name in self.recipe.members
        ]
        choose = {"uniform": lambda: cells, "greedy": lambda: self._greedy(cells, context)}
        if self.recipe.select not in choose:
            raise ValueError(f"method.select={self.recipe.select!r}: uniform or greedy")
        return [Entry(uniform(choose[self.recipe.select]()))]

    @staticmethod
    def _greedy(cells: Sequence[str], context: Context) -> list[str]:
        if not len(context.target.holdout):
            raise ValueError(
                "a greedy soup is chosen on a downstream hold-out; set dataset.holdout above 0"
            )
        alone = {name: context.holdout_accuracy({name: 1.0}) for name in cells}
        ranked = sorted(cells, key=lambda name: -alone[name])
        soup, best = ranked[:1], alone[ranked[0]]
        for name in ranked[1:]:
            accuracy = context.holdout_accuracy(uniform([*soup, name]))
            if accuracy >= best:
                soup, best = [*soup, name], accuracy
        return soup
