"""A pre-trained model's accuracy against the published one, before days of fine-tuning.

A wrong transform, class order or variant of an architecture loads without an error and costs a few
points. Published accuracies show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.cells.build import Builder
from engine.data import imagenet, packs
from engine.data.kinds import kind_of
from engine.evaluation import accuracies, passes
from engine.evaluation.accuracies import Model
from engine.measures import model_rows
from engine.models import images
from engine.recipe import catalogue
from engine.recipe.schema import ModelRecipe, Recipe

TOLERANCE = 0.3  # points: published numbers are rounded, and precisions differ
PUBLISHED, TIMM = "published", "timm's"  # as tables head them
STANDARD_ERRORS = 2.0  # where only a part of the published images is at hand


@dataclass(frozen=True)
class Check:
    """Accuracy (%) on a set, measured and published: by the benchmark (`published`) and by timm.

    allowed: the difference (points) that rounding and sampling explain. half_width: half the width
    (points) of the measured accuracy's 95% interval over source images. why_not: why the
    benchmark's is not compared, empty where it is. lacks: what the images lack of the published
    set, empty where it is whole. split: `all`, or `holdout` where other images of the set fitted
    the head. fits_timm: whether images are seen as timm's accuracies were measured.
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
    timm: float | None = None
    fits_timm: bool = False

    @property
    def agrees(self) -> dict[str, bool]:
        """By who published it, whether an accuracy that is compared is the measured one."""
        compared = {
            PUBLISHED: None if self.why_not else self.published,
            TIMM: self.timm if self.fits_timm else None,
        }
        if self.measured is None:
            return {}
        return {
            name: abs(self.measured - value) <= self.allowed
            for name, value in compared.items()
            if value is not None
        }

    @property
    def differs(self) -> bool:
        """Whether it is none of the published accuracies. The two differ by up to 0.4 points."""
        return bool(self.agrees) and not any(self.agrees.values())


def encoded(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Those of the sets that have a pack for the recipe's model, in their order."""
    return [name for name in names if packs.is_encoded(recipe, name)]


def verify(builder: Builder, tolerance: float = TOLERANCE) -> list[Check]:
    """Evaluate the pre-trained model on every encoded set. Returns a check for each set.

    A campaign of the same settings finds these predictions. Raises ValueError if no set is encoded.
    """
    recipe = builder.recipe
    names = encoded(recipe, recipe.dataset.evaluated_sets)
    if not names:
        raise ValueError(
            f"no dataset of {recipe.dataset.name} is encoded for {recipe.model.name} in "
            f"{recipe.runs}: run rib encode SET --source DIR --model MODEL first"
        )
    of_timm = timms(recipe.model)
    run = builder.run  # whose base model is fetched now
    checks = []
    for name in recipe.dataset.evaluated_sets:
        published, timm = recipe.model.published.get(name), of_timm.get(name)
        if name not in names:
            checks.append(Check(name, 0, None, published, 0.0, "not encoded", timm=timm))
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
            tolerance + _sampling(recipe, name, seen.n, timm if published is None else published),
            _why_not(recipe, name, published, run.sets.seen_by_head(name, split)),
            (seen.high - seen.low) / 2,
            kind_of(recipe.dataset).shortfall(name, pack),
            split,
            timm,
            fits_timm=bool(of_timm) and not differences(recipe.model),
        )
        checks.append(check)
    return checks


def timms(model: ModelRecipe) -> dict[str, float]:
    """Accuracy (%) by set that timm publishes of the model's weights."""
    weights = model.weights
    if weights.source != "timm" or weights.path or model.head.fit:
        return {}
    return model_rows.of_model(catalogue.TIMM_MODELS, model.arch)


def differences(model: ModelRecipe) -> str:
    """How the model sees images otherwise than timm's published accuracies were measured, in
    words; empty where it does not."""
    own, timms = vars(images.transform(model)), vars(images.published_transform(model.arch))
    other = [key for key in own if own[key] != timms[key]]
    return ", ".join(f"{key} {own[key]} (timm: {timms[key]})" for key in other)


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
