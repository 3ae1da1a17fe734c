"""Group the cells of a column for the jobs that train them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.cells.cell_plan import CellPlan
from engine.recipe.schema import Recipe


@dataclass
class _Bundle:
    """Cells that one job trains. numbers: of the cells. trainings: by steps, each once."""

    numbers: list[int]
    trainings: list[Recipe]

    @property
    def work(self) -> float:
        """In forward passes through the model per image of the dataset."""
        return sum(each.method.passes * each.train.epochs for each in self.trainings)

    def add(self, other: _Bundle) -> None:
        self.numbers += other.numbers
        self.trainings += [each for each in other.trainings if each not in self.trainings]


def groups(cells: Sequence[CellPlan], most: int) -> list[tuple[int, ...]]:
    """Numbers of the cells that train, in at most `most` groups of about equal work.

    Cells that share a training by steps are in one group, such as one that starts from another's
    weights; a fitted head takes seconds. Cells that only combine trainings of others are in none.
    """
    bundles: list[_Bundle] = []
    rows = [cell for cell in cells if cell.recipe.method.trains]
    made = [each for row in rows for each in _trainings(row)]
    for number, cell in enumerate(cells):
        trainings = _trainings(cell)
        if not cell.recipe.method.trains:
            trainings = [each for each in trainings if each not in made]
        if not (trainings or cell.recipe.method.trains):
            continue
        joined = _Bundle([number], trainings)
        for bundle in [each for each in bundles if any(t in each.trainings for t in trainings)]:
            joined.add(bundle)
            bundles.remove(bundle)
        bundles.append(joined)
    bundles.sort(key=lambda bundle: -bundle.work)  # the longest first, to the emptiest group
    count = min(most, sum(bundle.work > 0 for bundle in bundles) or 1)
    found = [_Bundle([], []) for _ in range(count)]
    for bundle in bundles:
        min(found, key=lambda group: group.work).add(bundle)
    return [tuple(sorted(group.numbers)) for group in found if group.numbers]


def _trainings(cell: CellPlan) -> list[Recipe]:
    """The trainings by steps of a cell, and of those that it needs."""
    return [each.recipe.untitled for each in cell.trained() if each.recipe.method.takes_steps]
