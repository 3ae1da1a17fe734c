"""Samples of the sets: drawn once for all models of a benchmark, and evaluated.

The pre-trained model's predictions of every image name the sample (`budget`), so all columns
of a grid see the same images, and a larger budget sees those of a smaller one again. What was
evaluated of a sample is kept in parts, by their place in the order of drawing; the predictions that
metrics read are put together from the parts, with the weight of each image beside it. A sample that
grows or shrinks evaluates no image twice. Only `evaluate.budget=1` without a half-width, which is
no sample, takes nothing over from one: images share batches with others then, which may change the
last bits of what is said of them.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.evaluation import budget, passes
from engine.evaluation.budget import Frame
from engine.evaluation.drawn import Drawn, framed
from engine.machine import ranks
from engine.machine.files import digest
from engine.measures import predictions
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store import pending
from engine.store.cells import Mix, essential
from engine.store.pending import Part


@dataclass(frozen=True)
class Sample(Drawn):
    """A sample of a split, whose predictions are kept in parts."""

    split: str

    @cached_property
    def prefix(self) -> str:
        """Begins the names of all samples of this order and these strata."""
        found = hashlib.sha256(self.index[self.frame.order].tobytes())
        found.update(self.frame.stratum.tobytes() + self.frame.share.tobytes())
        return f"sample-{found.hexdigest()[:16]}-"

    def first(self, images: int) -> Part:
        """The sample of so many images, as it is put together."""
        return replace(self.since(0, images), name=f"{self.prefix}{images}")

    def since(self, start: int, images: int) -> Part:
        """What a sample of so many images has on top of one of `start`, as it is evaluated."""
        places = np.sort(self.index[self.frame.order[start:images]])
        return Part(self.split, places, f"{self.prefix}{start}-{images}")

    def weighted(self, table: pa.Table) -> pa.Table:
        """The sample's rows of a table that holds them, with their weights unless they are all."""
        table = table.take(np.argsort(table["index"].to_numpy()))
        drawn = self.index[self.frame.order[: self.images]]
        ascending = np.argsort(drawn)
        table = table.take(np.searchsorted(table["index"].to_numpy(), drawn[ascending]))
        if self.whole:
            return table
        weights = pa.array(self.frame.weights(self.images)[ascending])
        return table.append_column(predictions.WEIGHT, weights)


def split_of(recipe: Recipe, name: str) -> str:
    """Sets that a cell trained on are judged on their hold-out, where there is one; others as the
    recipe says."""
    trained_on = name in (recipe.downstream, recipe.dataset.upstream)
    return "holdout" if recipe.dataset.holdout and trained_on else recipe.evaluate.split


def draw(run: Run, splits: Mapping[str, str]) -> dict[str, Sample]:
    """The samples of a recipe's budget, by set; none where all images are evaluated at once.

    `splits`: of each set of the benchmark, the split that is judged. The pre-trained model is
    evaluated on all of it first. The budget is for the downstream sets; of the upstream set, which
    no RI counts, as many images are drawn as of the set with most. Raises RecipeError for a budget
    that is too little for these sets.
    """
    asked = run.recipe.evaluate
    if asked.budget == 1 and asked.half_width is None:
        return {}
    framed = {name: _frame(run, name, split) for name, split in splits.items()}
    sets = [name for name in splits if name in run.recipe.dataset.sets]
    frames = [framed[name][0] for name in sets]
    share = asked.budget
    if asked.half_width is not None and share == budget.FIRST:
        share = max(share, budget.least_share(frames))
    counts = dict(zip(sets, budget.allocate(frames, share), strict=True))
    most = max(counts.values())
    return {
        name: Sample(frame, counts.get(name, frame.up_to(most)), index, splits[name])
        for name, (frame, index) in framed.items()
    }


def draw_all(run: Run) -> dict[str, Sample]:
    """The samples of every set, each of the split that it is judged on."""
    return draw(run, {name: split_of(run.recipe, name) for name in run.recipe.dataset.places})


def evaluate_on(
    run: Run, mixes: Iterable[Mix], name: str, split: str, sample: Sample | None
) -> None:
    """Make the predictions of every mix on a sample of a set (None: on all of the split)."""
    wanted = [essential(mix) for mix in mixes]
    if sample is None:
        passes.evaluate(run, wanted, [name], split)
        return
    held = {digest(mix): _held(run, mix, name, sample) for mix in wanted}
    if sample.whole:  # what has not begun is evaluated as without a budget, and serves as that
        fresh = [mix for mix in wanted if held[digest(mix)][1] is None]
        passes.evaluate(run, fresh, [name], split)
        held |= {digest(mix): (sample.images, split) for mix in fresh}
    for start in sorted({images for images, _ in held.values()} - {sample.images}):
        group = [mix for mix in wanted if held[digest(mix)][0] == start]
        passes.evaluate(run, group, [name], sample.since(start, sample.images))
    for mix in wanted:
        _put_together(run, mix, name, sample, *held[digest(mix)])


def predicted(run: Run, mix: Mix, name: str, split: str, sample: Sample | None) -> Path:
    """Parquet file of a mix's predictions on a sample; FileNotFoundError if there is none."""
    if sample is None or (sample.whole and passes.find(run, mix, name, split)):
        return passes.predicted(run, mix, name, split)
    return passes.predicted(run, mix, name, sample.first(sample.images))


def seed_of(run: Run, name: str, split: str) -> list[int]:
    """Seed of the order in which a set's images are drawn."""
    pack = run.sets[name].pack.fingerprint
    return [run.recipe.dataset.seed, int(digest([pack, split]), 16)]


def _frame(run: Run, name: str, split: str) -> tuple[Frame, np.ndarray]:
    base = {run.base.name: 1.0}
    passes.evaluate(run, [base], [name], split)
    table = predictions.read(passes.predicted(run, base, name, split))
    return framed(table, seed_of(run, name, split))


def _held(run: Run, mix: Mix, name: str, sample: Sample) -> tuple[int, str | Part | None]:
    """How many of the sample's images a mix was evaluated on, and what holds its predictions.

    That is all of the split, or the largest sample that is no larger. Ranks agree on the answer.
    """
    if ranks.all_agree(passes.find(run, mix, name, sample.split) is not None):
        return sample.images, sample.split
    label, _ = passes.key_of(run, mix, run.sets[name], sample.split)
    names = (run.store.root / "predictions").glob(f"{sample.prefix}*-{glob.escape(label)}-*")
    sizes = {int(path.name.removeprefix(sample.prefix).partition("-")[0]) for path in names}
    there = [
        size
        for size in sizes
        if size <= sample.images and passes.find(run, mix, name, sample.first(size))
    ]
    agreed = int(ranks.least(max(there, default=0)))
    return agreed, sample.first(agreed) if agreed else None


def _put_together(
    run: Run, mix: Mix, name: str, sample: Sample, start: int, source: str | Part | None
) -> None:
    """Store the sample's predictions: those of `source`, and of what was evaluated since."""
    if sample.whole and source == sample.split:
        return
    goal = sample.first(sample.images)
    sources = [source] if source is not None else []
    if start < sample.images:
        sources.append(sample.since(start, sample.images))

    def write(folder: Path) -> None:
        read = [predictions.read(passes.predicted(run, mix, name, one)) for one in sources]
        columns = [column for column in read[-1].column_names if column != predictions.WEIGHT.name]
        table = sample.weighted(pa.concat_tables([one.select(columns) for one in read]))
        pending.write(folder, table, key)

    label, key = passes.key_of(run, mix, run.sets[name], goal)
    ranks.first(lambda: run.store.make("predictions", label, key, write))
