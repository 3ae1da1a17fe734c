"""What a finished cell means, in the terminal: accuracy on every set beside the pre-trained one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.machine import ranks
from engine.measures import metrics, predictions
from engine.sampling import sample

if TYPE_CHECKING:
    from engine.cells import Cell
    from engine.context import Context
    from engine.merge import Mix


def show(context: Context, cell: Cell) -> None:
    """Evaluate a cell's headline model and the pre-trained one on every set; print both and RI."""
    recipe = context.recipe
    headline = next(entry for entry in cell.entries if entry.headline)
    pre_trained: Mix = {context.base.name: 1.0}
    names = [*recipe.dataset.sets, recipe.dataset.upstream]
    splits = {name: split_of(context, name) for name in names}
    samples = sample.draw(context, splits)
    for name, split in splits.items():
        mixes = [pre_trained, headline.mix]
        sample.evaluate_on(context, mixes, name, split, samples.get(name))
    if ranks.rank():
        return
    print(f"{recipe.method.title} ({recipe.method.variant}) on {recipe.downstream}, percent top-1")
    print(f"{'set':<20}{'images':>8}{'before':>9}{'after':>9}{'change':>9}")
    accuracy: dict[str, tuple[float, float]] = {}
    for name, split in splits.items():
        one = samples.get(name)
        pair = [_accuracy(context, mix, name, split, one) for mix in (pre_trained, headline.mix)]
        (n, pre), (_, post) = pair
        accuracy[name] = pre, post
        mark = " *" if name == recipe.downstream else ""
        print(f"{name:<20}{n:>8}{pre:>9.1f}{post:>9.1f}{post - pre:>+9.1f}{mark}")
    if recipe.downstream in recipe.dataset.sets and len(recipe.dataset.sets) > 1:
        ri = metrics.robustness_improvement(
            recipe.downstream,
            {name: after for name, (_, after) in accuracy.items()},
            {name: before for name, (before, _) in accuracy.items()},
            recipe.dataset.sets,
        )
        print(f"RI {ri:+.2f} points over the sets without *, which was trained on")
    print(f"cell  {cell.artifact.folder}")


def split_of(context: Context, name: str) -> str:
    """Sets that a cell trained on are judged on their hold-out, where there is one; others as the
    recipe says."""
    recipe = context.recipe
    trained_on = name in (recipe.downstream, recipe.dataset.upstream)
    return "holdout" if recipe.dataset.holdout and trained_on else recipe.evaluate.split


def _accuracy(
    context: Context, mix: Mix, name: str, split: str, one: sample.Sample | None
) -> tuple[int, float]:
    path = sample.predicted(context, mix, name, split, one)
    seen = predictions.Bank[str]().add(name, path)
    return len(seen.top1), seen.accuracy
