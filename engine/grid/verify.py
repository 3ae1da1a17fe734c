"""A pre-trained model against what was published for it, before days are spent on fine-tuning it.

A wrong transform, class order or variant of an architecture loads without a word and costs a few
points; published accuracies tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from engine.data import imagenet, packs
from engine.evaluation import passes
from engine.measures import bootstrap, metrics, predictions
from engine.recipe.schema import Recipe
from engine.run import Run
from loaders.pack import MANIFEST

TOLERANCE = 0.3  # points: published numbers are rounded, and precisions differ
STANDARD_ERRORS = 2.0  # where only a part of the published images is at hand


@dataclass(frozen=True)
class Check:
    """Accuracy (%) measured and published on one set; `allowed` is the difference (points) that
    rounding and sampling explain; `half_width` half the width (points) of the 95% interval of what
    was measured, over source images. `why_not`: why the two are not compared, empty where they are.
    `lacks`: what the images at hand lack of the published set, empty where it is whole.
    """

    name: str
    images: int
    measured: float | None
    published: float | None
    allowed: float
    why_not: str = ""
    half_width: float = 0.0
    lacks: str = ""

    @property
    def differs(self) -> bool:
        if self.measured is None or self.published is None or self.why_not:
            return False
        return not abs(self.measured - self.published) <= self.allowed


def encoded(recipe: Recipe) -> list[str]:
    """The sets of a recipe whose packs are there, the upstream set first."""
    dataset, model = recipe.dataset, recipe.model
    places = [dataset.upstream, *dataset.sets]
    folders = [packs.pack_folder(Path(recipe.runs), dataset, model, name) for name in places]
    there = [(folder / MANIFEST).is_file() for folder in folders]
    return [name for name, found in zip(places, there, strict=True) if found]


def verify(run: Run, tolerance: float = TOLERANCE) -> list[Check]:
    """Evaluate the pre-trained model on every encoded set; a check for each set of the recipe.

    Predictions are kept where a campaign of the same settings finds them. Raises ValueError where
    no set is encoded.
    """
    recipe = run.recipe
    there = encoded(recipe)
    if not there:
        raise ValueError(
            f"no set of {recipe.dataset.name} is encoded for {recipe.model.name} under "
            f"{recipe.runs}; encode one first (rib encode SET --source DIR --model MODEL)"
        )
    checks = []
    for name in (recipe.dataset.upstream, *recipe.dataset.sets):
        published = recipe.model.published.get(name)
        if name not in there:
            checks.append(Check(name, 0, None, published, 0.0, "not encoded"))
            continue
        mix = {run.base.name: 1.0}
        passes.evaluate(run, [mix], [name], "all")
        bank = predictions.Bank[str]()
        seen = bank.add(name, passes.predicted(run, mix, name, "all"))
        pack = run.sets[name].pack
        run.sets.release(name)
        images = len(seen.top1)
        allowed = tolerance + _sampling(recipe, name, images, published)
        why_not = _why_not(recipe, name, published)
        half = _half_width(bank, name)
        of_imagenet = recipe.dataset.kind == "imagenet"
        lacks = imagenet.shortfall(recipe.dataset, name, pack) if of_imagenet else ""
        checks.append(Check(name, images, seen.accuracy, published, allowed, why_not, half, lacks))
    return checks


def text(model: str, checks: list[Check]) -> str:
    """The checks as `rib verify` prints them."""
    lines = [
        f"{model}: top-1 before fine-tuning, in percent",
        f"{'set':<20}{'images':>11}{'measured':>10}{'95%':>7}{'published':>11}{'difference':>12}",
    ]
    for one in checks:
        if one.measured is None:
            lines.append(f"{one.name:<20}{one.why_not:>11}")
            continue
        line = f"{one.name:<20}{one.images:>11,}{one.measured:>10.1f}"
        line += f"{f'±{one.half_width:.1f}':>7}"
        if one.published is not None:
            line += f"{one.published:>11.1f}{one.measured - one.published:>+12.1f}"
        if one.differs:
            line += f"  DIFFERS by more than {one.allowed:.1f}"
        lines.append(f"{line}  {one.why_not}".rstrip())
        if one.lacks:
            lines.append(f"  only a part: {one.lacks}")
    return "\n".join(lines)


def _half_width(bank: predictions.Bank[str], name: str) -> float:
    columns = {name: bank.sums(name, [0])[:, :, None]}
    return bootstrap.half_width(metrics.settled_draws({name: bank}, columns)[:, 0])


def _sampling(recipe: Recipe, name: str, images: int, published: float | None) -> float:
    """Points that the choice of images explains, where they are a part of the published ones."""
    all_images = recipe.dataset.kind != "imagenet" or images >= imagenet.SIZES[name].images
    if published is None or all_images:
        return 0.0
    share = published / 100
    return STANDARD_ERRORS * 100 * math.sqrt(share * (1 - share) / images)


def _why_not(recipe: Recipe, name: str, published: float | None) -> str:
    if published is None:
        return "nothing published"
    if name == imagenet.OBJECTNET and recipe.dataset.objectnet != "paper":
        return "not compared: published for dataset.objectnet=paper"
    return ""
