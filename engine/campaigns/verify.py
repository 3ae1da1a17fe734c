"""Check a pretrained model's accuracy against published values, before days of fine-tuning.

A wrong transform, class order or architecture variant raises no error, but lowers the accuracy by a
few points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.cells.build import Builder
from engine.data import packs
from engine.data.kinds import kind_of
from engine.evaluation import accuracies, passes
from engine.evaluation.accuracies import EvaluatedModel
from engine.measures import model_rows
from engine.recipe import catalogue, image_transform
from engine.recipe.schema import ModelRecipe, Recipe

TOLERANCE = 0.3  # points: published numbers are rounded, and precisions differ
PUBLISHED, TIMM = "published", "timm's"  # headings of tables
STANDARD_ERRORS = 2.0  # allowed if only a part of the published images is available


@dataclass(frozen=True)
class AccuracyCheck:
    """Accuracy (%) on a dataset: measured, and published by the benchmark and by timm.

    Attributes:
        name: the dataset.
        images: number of evaluated images.
        measured: accuracy, or None if the dataset is not encoded.
        published: the benchmark's accuracy, or None.
        allowed: difference in percentage points that rounding and sampling explain.
        why_not: why `published` is not compared, or empty.
        half_width: half width, in percentage points, of the measured accuracy's 95% interval over
            source images.
        lacks: images missing from the published dataset, in words, or empty.
        split: `all`, or `holdout` if other images of the dataset fitted the head.
        timm: timm's accuracy, or None.
        fits_timm: whether the transform is the one with which timm measured.
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
        """Whether the measured accuracy agrees with each one that is compared, by publisher."""
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
        """Whether it agrees with no published accuracy. The published ones differ from each other
        by up to 0.4 points."""
        return bool(self.agrees) and not any(self.agrees.values())


def encoded(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """The datasets in `names` with a pack for the recipe's model, in order."""
    return [name for name in names if packs.is_encoded(recipe, name)]


def verify(run: Builder, tolerance: float = TOLERANCE) -> list[AccuracyCheck]:
    """Evaluate the pretrained model on every encoded dataset. Returns one check per dataset.

    Raises ValueError if none is encoded.
    """
    recipe = run.recipe
    names = encoded(recipe, recipe.dataset.evaluated_sets)
    if not names:
        raise ValueError(
            f"no dataset of {recipe.dataset.name} is encoded for {recipe.model.name} in "
            f"{recipe.runs}: run rib encode SET --images DIR --model {recipe.model.name} first"
        )
    of_timm = timms(recipe.model)
    checks = []
    for name in recipe.dataset.evaluated_sets:
        published, timm = recipe.model.published.get(name), of_timm.get(name)
        if name not in names:
            checks.append(AccuracyCheck(name, 0, None, published, 0.0, "not encoded", timm=timm))
            continue
        mix = {run.base.name: 1.0}
        split = "holdout" if name == recipe.head_set and recipe.dataset.holdout else "all"
        passes.evaluate(run, [mix], [name], split)
        model = EvaluatedModel.named(recipe.model.name, mix)
        (seen,) = accuracies.on_set(run, [model], name, split, intervals=True)
        assert seen.accuracy_low is not None and seen.accuracy_high is not None
        pack = run.sets[name].pack
        run.sets.release(name)
        check = AccuracyCheck(
            name,
            seen.images,
            seen.accuracy_pct,
            published,
            tolerance
            + _sampling(recipe, name, seen.images, timm if published is None else published),
            _why_not(recipe, name, published, run.sets.seen_by_head(name, split)),
            (seen.accuracy_high - seen.accuracy_low) / 2,
            kind_of(recipe.dataset, name).shortfall(pack),
            split,
            timm,
            fits_timm=bool(of_timm) and not differences(recipe.model),
        )
        checks.append(check)
    return checks


def timms(model: ModelRecipe) -> dict[str, float]:
    """Accuracies (%) by dataset that timm publishes for the model's weights."""
    weights = model.weights
    if weights.source != "timm" or weights.path or model.head.fit:
        return {}
    return model_rows.of_model(catalogue.TIMM_MODELS, model.arch)


def differences(model: ModelRecipe) -> str:
    """Differences, in words, between the model's transform and the one with which timm measured its
    published accuracies; empty if there are none."""
    own = vars(image_transform.transform(model))
    timms = vars(image_transform.published_transform(model.arch))
    other = [key for key in own if own[key] != timms[key]]
    return ", ".join(f"{key} {own[key]} (timm: {timms[key]})" for key in other)


def _sampling(recipe: Recipe, name: str, images: int, published: float | None) -> float:
    """Percentage points explained by sampling, if the images are a part of the published set."""
    of_set = kind_of(recipe.dataset, name).published_images()
    if published is None or of_set is None or images >= of_set:
        return 0.0
    share = published / 100
    return STANDARD_ERRORS * 100 * math.sqrt(share * (1 - share) / images)


def _why_not(recipe: Recipe, name: str, published: float | None, fitted: int = 0) -> str:
    if fitted:
        return f"{fitted:,} show photos that fitted the head; model.head.fit_on names other ones"
    if published is None:
        return "nothing published"
    why = kind_of(recipe.dataset, name).why_not_comparable()
    return why and f"not compared: {why}"
