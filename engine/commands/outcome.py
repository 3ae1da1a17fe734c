"""Print a finished cell's accuracy on every dataset, before and after training."""

from __future__ import annotations

from engine.evaluation import accuracies, passes
from engine.evaluation.bank import Bank
from engine.machine import ranks
from engine.measures.rows import robustness_improvement
from engine.report import console
from engine.report.text import rounded
from engine.run import Run
from engine.store.cells import Cell
from engine.training import trackers


def show(run: Run, cell: Cell) -> None:
    """Evaluate a cell's headline model and the pretrained one on every dataset; print both and
    RI."""
    recipe = run.recipe
    sets, downstream = recipe.dataset.sets, recipe.downstream
    others = [name for name in sets if name not in recipe.trained_sets]
    headline = next(entry for entry in cell.entries if entry.headline)
    mixes, loaded = [{run.base.name: 1.0}, headline.mix], Bank(run)
    for name in recipe.dataset.evaluated_sets:
        passes.evaluate(run, mixes, [name], recipe.split_of(name), loaded)
    if ranks.rank():
        return
    compared = accuracies.compared(run, headline.mix, intervals=True)
    trackers.log_accuracies(recipe, compared)
    rows = []
    for name in [*sets, *filter(None, [recipe.dataset.upstream]), *recipe.dataset.evaluate_on]:
        before, after = compared[name]
        assert after.change_pts is not None and after.change_low is not None
        assert after.change_high is not None
        numbers = (
            f"{before.accuracy_pct:.1f}",
            f"{after.accuracy_pct:.1f}",
            f"{after.change_pts:+.1f}",
        )
        half_width = f"±{rounded((after.change_high - after.change_low) / 2, 1)}"
        mark = "" if name in others else "*"
        rows.append([name, f"{after.images}", *numbers, half_width, mark])
    title = f"{recipe.method.title} ({recipe.method.variant}) on {downstream}, percent top-1"
    print(console.text(title, ["set", "images", "before", "after", "change", "95%", ""], rows))
    if others and {*recipe.trained_sets} <= {*sets}:
        before, after = ({n: pair[k].accuracy_pct for n, pair in compared.items()} for k in (0, 1))
        ri = robustness_improvement(downstream, after, before, sets)
        print(f"RI {ri:+.2f} points, the mean change over the datasets without *")
    print("±: half of the 95% interval over source images")
    print(f"cell  {cell.artifact.folder}")
