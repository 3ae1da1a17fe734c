"""What an extra may define. All functions are optional; each caller asks the extras in one loop.

An extra is a module: no base class, no registration. Importing it must be fast, so it imports torch
inside functions. `Options` is a frozen dataclass, the extra's section of a recipe. `check`,
`prepare`, `on_set` and `is_stored` are called for recipes that name the extra; `tables`,
`lead` and `section` for every report, or only for reports of such recipes if there is `on_set`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas

    from engine.measures.rows import Evaluation
    from engine.recipe.schema import Recipe
    from engine.report.results import Results
    from engine.report.section import Section
    from engine.run import Run
    from engine.store.cells import Mix

    RecordRow = dict[str, Any]  # of the record; as JSON


class CheckOptions(Protocol):
    def __call__(self, options: Any, recipe: Recipe) -> None:
        """Raise RecipeError, naming the key, for options that do not suit the recipe."""


class Prepare(Protocol):
    def __call__(self, options: Any, run: Run, name: str) -> None:
        """Make what all columns share on a dataset, and raise errors before anything is trained.

        All ranks of the first job call it, once per evaluated dataset.
        """


class OnSet(Protocol):
    def __call__(
        self, options: Any, run: Run, name: str, models: Sequence[tuple[Evaluation, Mix]]
    ) -> list[RecordRow]:
        """Rows for the record: what a column adds on a dataset.

        All ranks of the column's job call it once per evaluated dataset, after the evaluation;
        replicates do not. models: headline models and snapshots with weights of their own: the
        evaluation with the file of its predictions, and the cells that the model averages. A row
        has the keys of `engine.measures.rows.ModelOnSet`, and whatever else the extra shows.
        """
        ...


class IsStored(Protocol):
    def __call__(self, options: Any, run: Run, name: str, mix: Mix) -> bool:
        """Whether everything that `on_set` makes from the weights of a model on a dataset is in the
        store. The weights of a snapshot are removed after its evaluation."""
        ...


class Tables(Protocol):
    def __call__(self, results: Results) -> dict[str, pandas.DataFrame]:
        """CSV files of the report, by name. `results.record.extras[NAME]` has the rows."""
        ...


class Lead(Protocol):
    def __call__(self, results: Results) -> str:
        """A sentence for the first screen, without a full stop; empty for none."""
        ...


class MakeSection(Protocol):
    def __call__(self, results: Results) -> Section | None:
        """The extra's section of the page, or None. In a module it is called `section`. The page
        has the sections in the order of the extras' names."""
        ...
