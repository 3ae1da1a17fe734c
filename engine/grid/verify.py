"""A pre-trained model's accuracy against the published one, before days of fine-tuning.

A wrong transform, class order or variant of an architecture loads without an error and costs a few
points. Published accuracies show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data import imagenet, packs
from engine.data.kinds import kind_of
from engine.evaluation import accuracies, passes
from engine.evaluation.accuracies import Model
from engine.grid.build import Builder
from engine.recipe.schema import Recipe
from loaders.pack import MANIFEST

TOLERANCE = 0.3  # points: published numbers are rounded, and precisions differ
STANDARD_ERRORS = 2.0  # where only a part of the published images is at hand


@dataclass(frozen=True)
class Check:
    """Accuracy (%) on a set, measured and published.

    allowed: the difference (points) that rounding and sampling explain. half_width: half the width
    (points) of the measured accuracy's 95% interval over source images. why_not: why the two are
    not compared, empty where they are. lacks: what the images lack of the published set, empty
    where it is whole. split: `all`, or `holdout` where other images of the set fitted the head.
    """

    name: str
    images: int
    measured: float | None
    published: float | None
    allowed: float
    why_not: str = ""
    half_width: float = 0.0
    lacks: str = ""
    split: str = "all"

    @property
    def differs(self) -> bool:
        if self.measured is None or self.published is None or self.why_not:
            return False
        return not abs(self.measured - self.published) <= self.allowed


def encoded(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Those of the sets that have a pack for the recipe's model, in their order."""
    runs, dataset, model = Path(recipe.runs), recipe.dataset, recipe.model
    return [
        name
        for name in names
        if (packs.pack_folder(runs, dataset, model, name) / MANIFEST).is_file()
    ]


def verify(builder: Builder, tolerance: float = TOLERANCE) -> list[Check]:
    """Evaluate the pre-trained model on every encoded set. Returns a check for each set.

    A campaign of the same settings finds these predictions. Raises ValueError if no set is encoded.
    """
    recipe = builder.recipe
    names = encoded(recipe, recipe.dataset.places)
    if not names:
        raise ValueError(
            f"no set of {recipe.dataset.name} is encoded for {recipe.model.name} under "
            f"{recipe.runs}; encode a set first (rib encode SET --source DIR --model MODEL)"
        )
    run = builder.run  # whose base model is fetched now
    checks = []
    for name in recipe.dataset.places:
        published = recipe.model.published.get(name)
        if name not in names:
            checks.append(Check(name, 0, None, published, 0.0, "not encoded"))
            continue
        mix = {run.base.name: 1.0}
        split = "holdout" if name == recipe.head_set and recipe.dataset.holdout else "all"
        passes.evaluate(run, [mix], [name], split)
        model = Model.named(recipe.model.name, mix)
        (seen,) = accuracies.on_set(run, [model], name, split, intervals=True)
        assert seen.low is not None and seen.high is not None
        pack = run.sets[name].pack
        run.sets.release(name)
        check = Check(
            name,
            seen.n,
            seen.accuracy,
            published,
            tolerance + _sampling(recipe, name, seen.n, published),
            _why_not(recipe, name, published, run.sets.seen_by_head(name, split)),
            (seen.high - seen.low) / 2,
            kind_of(recipe.dataset).shortfall(name, pack),
            split,
        )
        checks.append(check)
    return checks


def _sampling(recipe: Recipe, name: str, images: int, published: float | None) -> float:
    """Points that the choice of images explains, if they are a part of the published set."""
    of_set = kind_of(recipe.dataset).published_images(name)
    if published is None or of_set is None or images >= of_set:
        return 0.0
    share = published / 100
    return STANDARD_ERRORS * 100 * math.sqrt(share * (1 - share) / images)


def _why_not(recipe: Recipe, name: str, published: float | None, fitted: int = 0) -> str:
    if fitted:
        return f"{fitted:,} show photos that fitted the head; model.head.fit_on names other ones"
    if published is None:
        return "nothing published"
    if name == imagenet.OBJECTNET and recipe.dataset.objectnet != "paper":
        return "not compared: published for dataset.objectnet=paper"
    return ""
