"""CKA of every block with the pretrained model's, before and after fine-tuning (`alignment`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

if TYPE_CHECKING:
    from engine.measures.rows import Evaluation
    from engine.report.results import Results
    from engine.report.section import Section
    from engine.run import Run
    from engine.store.cells import Mix

FEWEST = 4  # images; the estimator divides by n (n - 3)


@dataclass(frozen=True)
class Options:
    """CKA of every block with the pretrained model's, on a sample of each evaluated dataset."""

    images: Annotated[int, Meta(ge=FEWEST)] = 1000  # at most, per dataset


def prepare(options: Options, run: Run, name: str) -> None:
    """Raise ValueError for a dataset with too few images, RecipeError for a model without
    blocks."""
    from engine.extras.cka import alignment  # late: it loads torch, as in the functions below

    alignment.blocks_of(run.recipe.model)
    alignment.minibatches(run.recipe, run.sets[name], options.images)


def on_set(
    options: Options, run: Run, name: str, models: Sequence[tuple[Evaluation, Mix]]
) -> list[dict[str, Any]]:
    """Rows of `blocks`: CKA by block, from the first to the last; None if features do not vary."""
    from engine.extras.cka import alignment

    mixes = [mix for _, mix in models]
    alignment.evaluate(run, mixes, name, options.images)
    return [
        dataclasses.asdict(evaluation.cell)
        | {"seed": evaluation.seed, "blocks": alignment.stored(run, mix, name, options.images)}
        for evaluation, mix in models
    ]


def is_stored(options: Options, run: Run, name: str, mix: Mix) -> bool:
    from engine.extras.cka import alignment

    return alignment.find(run, mix, name, options.images) is not None


def section(results: Results) -> Section | None:
    from engine.extras.cka import page  # late: it loads pandas

    return page.section(results)
