"""Samples of the sets: drawn once for all models of a benchmark, and evaluated.

The pre-trained model's predictions of every image determine the sample (`budget`), so all columns
of a grid see the same images, and a larger budget sees those of a smaller one again. Predictions
are stored in parts of the order of drawing; metrics read them joined, with the weight of each image
beside it. So no image is evaluated twice where a sample grows or shrinks. Only `evaluate.budget=1`
without a half-width, which is no sample, takes over nothing from a sample: its images share batches
with others, which may change the last bits of their predictions.
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
from engine.evaluation.budget import Drawn, Frame
from engine.machine import ranks
from engine.machine.files import digest
from engine.measures import predictions
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store import pending
from engine.store.artifacts import Artifact
from engine.store.cells import Mix, essential
from engine.store.pending import Part


@dataclass(frozen=True)
class Sample(Drawn):
    """A sample of a split, whose predictions are stored in parts."""

    split: str

    @cached_property
    def prefix(self) -> str:
        """Begins the names of all samples of this order and these strata."""
        sha256 = hashlib.sha256(self.index[self.frame.order].tobytes())
        sha256.update(self.frame.stratum.tobytes() + self.frame.share.tobytes())
        return f"sample-{sha256.hexdigest()[:16]}-"

    def first(self, images: int) -> Part:
        """The first images of the order: a sample whose parts are joined."""
        return replace(self.since(0, images), name=f"{self.prefix}{images}")

    def since(self, start: int, images: int) -> Part:
        """The part that a sample of `images` adds to a sample of `start`, as it is evaluated."""
        places = np.sort(self.index[self.frame.order[start:images]])
        return Part(self.split, places, f"{self.prefix}{start}-{images}")

    def weighted(self, table: pa.Table) -> pa.Table:
        """The sample's rows of a table, with their weights unless they are the whole split's."""
        weights_N = np.zeros(len(self.index))
        weights_N[self.frame.order[: self.images]] = self.frame.weights(self.images)
        table = table.take(np.argsort(table["index"].to_numpy()))
        if self.whole:
            return table
        weights = weights_N[np.searchsorted(self.index, table["index"].to_numpy())]
        table = table.take(np.flatnonzero(weights))
        return table.append_column(predictions.WEIGHT, pa.array(weights[weights > 0]))


def is_drawn(recipe: Recipe) -> bool:
    """Whether a recipe evaluates a sample of each set, and not all of it."""
    return recipe.evaluate.budget != 1


def split_of(recipe: Recipe, name: str) -> str:
    """The split that a set is evaluated on: the hold-out of a set that a cell trained on, where
    there is one; `evaluate.split` of any other."""
    trained_on = name in (recipe.downstream, recipe.dataset.upstream)
    return "holdout" if recipe.dataset.holdout and trained_on else recipe.evaluate.split


def draw(run: Run, splits: Mapping[str, str]) -> dict[str, Sample]:
    """The samples of a recipe's budget, by set; none where all images are evaluated at once.

    `splits`: the split of each set of the benchmark. The pre-trained model is evaluated on all of
    it first. The budget is for the downstream sets; of the upstream set, which no RI counts, as
    many images are drawn as of the set with most. Raises RecipeError for a budget that is too
    little for these sets.
    """
    evaluate = run.recipe.evaluate
    if not is_drawn(run.recipe):
        return {}
    framed = {name: _frame(run, name, split) for name, split in splits.items()}
    sets = [name for name in splits if name in run.recipe.dataset.sets]
    frames = [framed[name][0] for name in sets]
    share = evaluate.budget
    counts = dict(zip(sets, budget.allocate(frames, share), strict=True))
    most = max(counts.values())
    for name, (frame, index) in framed.items():
        counts.setdefault(name, max(frame.least, min(most, len(index))))
    return {
        name: Sample(frame, counts[name], index, splits[name])
        for name, (frame, index) in framed.items()
    }


def draw_all(run: Run) -> dict[str, Sample]:
    """The samples of every set, each of the split that it is evaluated on."""
    return draw(run, {name: split_of(run.recipe, name) for name in run.recipe.dataset.places})


def seed_of(run: Run, name: str, split: str) -> list[int]:
    """Seed of the order in which a set's images are drawn."""
    pack = run.sets[name].pack.fingerprint
    return [run.recipe.dataset.seed, int(digest([pack, split]), 16)]


def evaluate_on(
    run: Run,
    mixes: Iterable[Mix],
    name: str,
    split: str,
    sample: Sample | None,
) -> None:
    """Make the predictions of every mix on a sample of a set (None: on all of the split)."""
    mixes = list(map(essential, mixes))
    if sample is None:
        passes.evaluate(run, mixes, [name], split)
        return
    by_start: dict[int, list[tuple[Mix, str | Part | None]]] = {}
    for mix in mixes:
        start, source = _stored(run, mix, name, sample)
        by_start.setdefault(start, []).append((mix, source))
    for start, group in sorted(by_start.items()):
        mixes = [mix for mix, _ in group]
        if sample.whole and not start:  # what has not begun is evaluated as without a budget
            passes.evaluate(run, mixes, [name], split)
            continue
        new = [sample.since(start, sample.images)] if start < sample.images else []
        for part in new:
            passes.evaluate(run, mixes, [name], part)
        for mix, source in group:
            if not (sample.whole and source == split):
                _join(run, mix, name, sample, [*filter(None, [source]), *new])


def predicted(run: Run, mix: Mix, name: str, split: str, sample: Sample | None) -> Path:
    """Parquet file of a mix's predictions on a sample; FileNotFoundError if there is none."""
    return passes.predicted(run, mix, name, _part(run, mix, name, split, sample))


def find(run: Run, mix: Mix, name: str, split: str, sample: Sample | None) -> Artifact | None:
    """A mix's predictions on a sample of a set (None: on all of the split), None without any."""
    return passes.find(run, mix, name, _part(run, mix, name, split, sample))


def _part(run: Run, mix: Mix, name: str, split: str, sample: Sample | None) -> str | Part:
    """What the predictions on a sample are stored under."""
    if sample is None or (sample.whole and passes.find(run, mix, name, split)):
        return split
    return sample.first(sample.images)


def _frame(run: Run, name: str, split: str) -> tuple[Frame, np.ndarray]:
    base = {run.base.name: 1.0}
    passes.evaluate(run, [base], [name], split)
    table = predictions.read(passes.predicted(run, base, name, split))
    return budget.frame_of(table, seed_of(run, name, split))


def _stored(run: Run, mix: Mix, name: str, sample: Sample) -> tuple[int, str | Part | None]:
    """How many of the sample's images a mix was evaluated on, and what holds its predictions.

    That is all of the split, or the largest sample that is no larger. Ranks agree on the answer.
    """
    if ranks.all_agree(passes.find(run, mix, name, sample.split) is not None):
        return sample.images, sample.split
    label, _ = passes.key_of(run, mix, run.sets[name], sample.split)
    paths = (run.store.root / "predictions").glob(f"{sample.prefix}*-{glob.escape(label)}-*")
    sizes = {int(path.name.removeprefix(sample.prefix).partition("-")[0]) for path in paths}
    finished = [
        size
        for size in sizes
        if size <= sample.images and passes.find(run, mix, name, sample.first(size))
    ]
    images = int(ranks.least(max(finished, default=0)))
    return images, sample.first(images) if images else None


def _join(run: Run, mix: Mix, name: str, sample: Sample, sources: list[str | Part]) -> None:
    """Store the sample's predictions, which the sources hold together."""

    def write(folder: Path) -> None:
        tables = [predictions.read(passes.predicted(run, mix, name, source)) for source in sources]
        columns = [name for name in tables[-1].column_names if name != predictions.WEIGHT.name]
        table = sample.weighted(pa.concat_tables([table.select(columns) for table in tables]))
        pending.write(folder, table, key)

    label, key = passes.key_of(run, mix, run.sets[name], sample.first(sample.images))
    ranks.first(lambda: run.store.make("predictions", label, key, write))
