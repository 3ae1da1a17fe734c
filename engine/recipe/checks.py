"""Whether the values of a recipe go together, checked before any work is done."""

from __future__ import annotations

import re

from engine.errors import RecipeError, nearest
from engine.recipe.schema import DatasetRecipe, Recipe
from loaders.benchmarks import emoji_styles
from loaders.names import is_name

TRACKERS = ("tensorboard", "wandb")  # and a user's `module:Class`
FEWEST_FOR_CKA = 4  # its estimator divides by n (n - 3), for n images
_LINE_END = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # or another control character
_NAME_BYTES = 100  # a cell's folder is named after a method and a set


def checked(recipe: Recipe) -> Recipe:
    """The recipe. Raises RecipeError naming a key that does not fit the others."""
    from loaders.rgb import colour  # imported late: it loads Pillow

    try:
        colour(recipe.dataset.background)
    except ValueError as error:
        raise RecipeError(
            f"dataset.background={recipe.dataset.background!r} is not possible; give a colour's "
            "name, or rgb(R,G,B) of 0 to 255"
        ) from error
    for name in recipe.trackers:
        if name not in TRACKERS and ":" not in name:
            raise RecipeError(f"trackers: {name!r} is not known{nearest(name, TRACKERS)}")
    if 0 < recipe.evaluate.cka < FEWEST_FOR_CKA:
        raise RecipeError(
            f"evaluate.cka={recipe.evaluate.cka}: CKA needs {FEWEST_FOR_CKA} images or more; 0 "
            "switches it off"
        )
    if recipe.evaluate.calibration and not recipe.dataset.holdout:
        raise RecipeError(
            "evaluate.calibration: a temperature is fitted on the hold-out of the set fine-tuned "
            "on; set dataset.holdout above 0, or leave evaluate.calibration off"
        )
    if recipe.dataset.shots and recipe.dataset.portion < 1:
        raise RecipeError(
            f"dataset.shots={recipe.dataset.shots} and dataset.portion={recipe.dataset.portion:g} "
            "both take a part of the training images; give only one of them"
        )
    if recipe.dataset.holdout_by == "source" and not recipe.dataset.holdout:
        raise RecipeError(
            "dataset.holdout_by=source holds nothing out with dataset.holdout=0; set "
            "dataset.holdout to the share of photos that no model trains on, such as 0.25"
        )
    parts = ("shots", "portion", "train_images")
    taken = [k for k in parts if getattr(recipe.dataset, k) != getattr(DatasetRecipe, k)]
    if recipe.judges_seen and taken:
        raise RecipeError(
            f"dataset.{taken[0]} trains on a part of the photos, so that the others are not seen: "
            "leave it out, or set evaluate.seen=false, which leaves out the leak"
        )
    for key in ("classes", "renderings", "source_px"):
        value = getattr(recipe.dataset, key)
        if recipe.dataset.kind != "emoji" and value != getattr(DatasetRecipe, key):
            raise RecipeError(
                f"dataset.{key}={value} is of emoji-RIB, which is drawn; of {recipe.dataset.name} "
                "all images of all classes are taken: leave the key out"
            )
    if _LINE_END.search(recipe.method.title):
        raise RecipeError(
            f"method.title={recipe.method.title!r:.150} is not possible; write it in one line"
        )
    recipe.method.check(recipe)
    _check_names(recipe)
    if recipe.downstream not in (known := recipe.dataset.known):
        raise RecipeError(
            f"downstream={recipe.downstream!r} is not a set of {recipe.dataset.name}"
            f"{nearest(recipe.downstream, known)}"
        )
    check_terms(recipe.dataset, recipe.downstream)
    _check_head(recipe.model.head.fit_on, recipe.dataset)
    return recipe


def _check_head(fit_on: str, dataset: DatasetRecipe) -> None:
    """Raise RecipeError where a head would be fitted on a set that is evaluated."""
    may_fit = [dataset.upstream, *dataset.train_sets]
    if fit_on and fit_on not in may_fit:
        raise RecipeError(
            f"model.head.fit_on={fit_on!r}: a head is fitted on the upstream set or on a set of "
            f"dataset.train_sets, which is never evaluated{nearest(fit_on, may_fit)}"
        )


def check_terms(dataset: DatasetRecipe, downstream: str) -> None:
    """Raise RecipeError where a licence forbids to fine-tune on a set of the data set."""
    if downstream not in dataset.trainable:
        raise RecipeError(
            f"{downstream} is a test set: its licence forbids tuning a model's parameters on it. "
            "If its authors gave you leave, set dataset.objectnet_terms=accepted"
        )


def check_name(key: str, name: str) -> None:
    """Raise RecipeError for a name that cannot be part of a path."""
    if not is_name(name) or len(name.encode()) > _NAME_BYTES:
        raise RecipeError(
            f"{key}: {name!r:.150} cannot be part of a path; use at most "
            f"{_NAME_BYTES} bytes, without slashes, braces, line ends or a leading '.'"
        )


def _check_names(recipe: Recipe) -> None:
    """Names become parts of paths, and no two sets may share a name."""
    dataset = recipe.dataset
    sets = [
        *(("dataset.sets", name) for name in dataset.sets),
        *(("dataset.train_sets", name) for name in dataset.train_sets),
    ]
    keys = [
        ("model.name", recipe.model.name),
        ("method.name", recipe.method.name),
        ("dataset.upstream", dataset.upstream),
    ]
    for key, name in [*keys, *sets]:
        check_name(key, name)
    if dataset.kind == "emoji":
        known = (*emoji_styles.DOWNSTREAM, *emoji_styles.DERIVED)
        for key, name in sets:
            if name not in known:
                raise RecipeError(f"{key}: {name!r} is no emoji style{nearest(name, known)}")
    train_sets = [*dataset.sets, *dataset.train_sets]
    for key, names in (("sets", dataset.evaluated_sets), ("train_sets", train_sets)):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(f"dataset.{key} names {', '.join(twice)} twice")
