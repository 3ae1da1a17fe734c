"""Check that the values of a recipe are compatible, before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.measures.rows import UNION
from engine.recipe import extras, kinds
from engine.recipe.catalogue import absolute_tracker
from engine.recipe.finder import check_file, is_users, names_in
from engine.recipe.kinds import LISTS
from engine.recipe.schema import DatasetRecipe, Recipe, SplitRecipe, TrainRecipe
from engine.recipe.words import read_words
from loaders.files.names import is_name, one_line

TRACKERS = "engine.training.trackers"  # the package that `trackers` names modules of
_NAME_BYTES = 100  # names of cells' folders contain a method and a dataset


def checked(recipe: Recipe) -> Recipe:
    """Returns the recipe with the options of its extras and absolute paths of its trackers.

    Raises RecipeError, naming a key that conflicts with the others.
    """
    from loaders.decoding import colour  # imported here because it loads Pillow

    try:
        colour(recipe.dataset.background)
    except ValueError as error:
        raise RecipeError(
            f"dataset.background={recipe.dataset.background!r} is not a colour: give a colour's "
            "name, or rgb(R,G,B) with values from 0 to 255"
        ) from error
    for name in recipe.trackers:
        if ":" not in name and name not in (known := names_in(TRACKERS)):
            raise RecipeError(f"trackers: unknown tracker {name!r}{nearest(name, known)}")
        if is_users(file := name.rpartition(":")[0]):
            check_file("trackers", file)
    trackers = [absolute_tracker(name, Path()) for name in recipe.trackers]  # of the command line
    recipe = dataclasses.replace(recipe, trackers=trackers, extras=extras.complete(recipe.extras))
    for file in extras.users_files(recipe):
        check_file("extras", file)
    for _ in extras.ask(recipe, "check", recipe):
        pass
    if recipe.evaluate.calibration and not recipe.dataset.holdout:
        raise RecipeError(
            "evaluate.calibration fits a temperature on the downstream dataset's held-out images: "
            "set dataset.holdout above 0, or leave evaluate.calibration off"
        )
    if recipe.dataset.probe_sets and not recipe.dataset.holdout:
        raise RecipeError(
            "dataset.probe_sets are judged on held-out images, and dataset.holdout=0 holds none "
            "out: set dataset.holdout above 0, such as 0.25"
        )
    if recipe.dataset.shots and recipe.dataset.fraction < 1:
        raise RecipeError(
            f"dataset.shots={recipe.dataset.shots} and "
            f"dataset.fraction={recipe.dataset.fraction:g} both select training images: "
            "set only one of them"
        )
    if recipe.dataset.holdout_by == "source" and not recipe.dataset.holdout:
        raise RecipeError(
            "dataset.holdout_by=source holds nothing out with dataset.holdout=0: set "
            "dataset.holdout to the fraction of photos to hold out, such as 0.25"
        )
    if recipe.dataset.holdout_by == "source" and not recipe.dataset.knows_photos:
        raise RecipeError(
            "dataset.holdout_by=source holds out photos that several datasets show, and by these "
            "options none do: for folders, set dataset.sources=names if equal class and file names "
            "mean the same photo; for a table, name dataset.source_column; or leave holdout_by out"
        )
    train = recipe.train
    if len(set(train.augment)) < len(train.augment):
        raise RecipeError(f"train.augment={train.augment} names an operation twice: name it once")
    if not train.crops and train.crop_scale != TrainRecipe.crop_scale:
        raise RecipeError(
            "train.crop_scale applies to random crops: add crop to train.augment, or leave it out"
        )
    if train.crop_scale[0] > train.crop_scale[1]:
        raise RecipeError(
            f"train.crop_scale={list(train.crop_scale)}: the first number is the smaller one"
        )
    parts = ("shots", "fraction", "train_images")
    given = [k for k in parts if getattr(recipe.dataset, k) != getattr(DatasetRecipe, k)]
    if recipe.judges_seen and given:
        raise RecipeError(
            f"dataset.{given[0]} trains on only some of the photos, so the leak would count unseen "
            "ones: leave the key out, or set evaluate.seen=false to skip the leak"
        )
    if recipe.judges_seen and not recipe.dataset.upstream:
        raise RecipeError(
            "without dataset.upstream, each column has a pretrained model of its own, of which the "
            "leak is not measured: set evaluate.seen=false"
        )
    if one_line(recipe.method.title) != recipe.method.title:
        raise RecipeError(
            f"method.title={recipe.method.title!r:.150} contains a control character: write it in "
            "one line"
        )
    recipe.method.check(recipe)
    _check_names(recipe)
    name = union_name("downstream", recipe.trained_sets, recipe.dataset)
    if recipe.downstream != name:
        raise RecipeError(f"downstream={recipe.downstream}: write {name}, in the benchmark's order")
    fit_on = recipe.model.head.fit_on
    may_fit = [*filter(None, [recipe.dataset.upstream]), *recipe.dataset.train_sets]
    if fit_on and fit_on not in may_fit:
        raise RecipeError(
            f"model.head.fit_on={fit_on!r}: fit a head on the upstream dataset or on one of "
            f"dataset.train_sets, which are never evaluated{nearest(fit_on, may_fit)}"
        )
    return recipe


def check_words(dataset: DatasetRecipe) -> None:
    """Raise RecipeError for class words or templates that CLIP's text tower cannot read."""
    for number, template in enumerate(dataset.templates, start=1):
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise RecipeError(
                f"dataset.templates, number {number}: {template!r:.150} must contain {{}} once, in "
                "place of a class's words, and no other braces"
            )
    if dataset.class_names:
        read_words(Path(dataset.class_names))


def union_name(key: str, names: Sequence[str], dataset: DatasetRecipe) -> str:
    """The name of a column that trains on these datasets: equal unions have one name.

    key: what names the datasets, for errors. Raises RecipeError for a dataset that is unknown,
    named twice or not licensed for fine-tuning, and for a union whose name is too long for a path.
    """
    for name in names:
        if name not in dataset.known:
            raise RecipeError(
                f"{key}: {name!r} is not a dataset of {dataset.name}{nearest(name, dataset.known)}"
            )
        if name not in dataset.trainable:
            raise RecipeError(
                f"{key}: {name} is a test set (dataset.test_only): its licence forbids tuning a "
                "model's parameters on it. If its authors gave you permission, set "
                "dataset.test_only=[]"
            )
        if names.count(name) > 1:
            raise RecipeError(f"{key} names {name} twice")
    union = UNION.join(name for name in dataset.known if name in names)
    check_name(key, union)
    return union


def check_name(key: str, name: str) -> None:
    """Raise RecipeError for a name that cannot be part of a path."""
    if not is_name(name) or len(name.encode()) > _NAME_BYTES:
        raise RecipeError(
            f"{key}: {name!r:.150} cannot be part of a path: use at most "
            f"{_NAME_BYTES} bytes, without slashes, braces, line ends or a leading '.'"
        )


def _check_names(recipe: Recipe) -> None:
    """Check names, which become parts of paths, and that no two datasets share one."""
    dataset = recipe.dataset
    keys = [("model.name", recipe.model.name), ("method.name", recipe.method.name)]
    if dataset.upstream:
        keys.append(("dataset.upstream", dataset.upstream))
    for key in LISTS:
        keys += [(f"dataset.{key}", name) for name in getattr(dataset, key)]
    for key, name in keys:
        check_name(key, name)
        if UNION in name and key.startswith("dataset"):
            raise RecipeError(
                f"{key}: {name!r} contains {UNION}, which joins the datasets that a column trains "
                "on: rename the dataset"
            )
    for name, own in dataset.per_dataset.items():
        if is_users(kind := str(own.get("kind", ""))):
            check_file(f"dataset.per_dataset.{name}: kind", kind)
    for name in (*dataset.known, *dataset.probe_sets):
        of_set = kinds.of_set(dataset, name)
        of_set.check(name)
        if not of_set.split.column and of_set.split != SplitRecipe():
            raise RecipeError(
                f"dataset.split of {name} names no column: set split.column, or leave the split out"
            )
        if of_set.split.column and not dataset.holdout:
            raise RecipeError(
                f"dataset.holdout=0 trains and evaluates {name} on all images, which have a "
                "published split: set holdout above 0 (its value has no effect on this dataset), "
                "or leave the split out"
            )
    if not (dataset.upstream or dataset.sets):
        raise RecipeError(
            "without dataset.upstream, the first of dataset.sets has the head's classes: name one"
        )
    if kinds.of_set(dataset, dataset.head_classes).class_map:
        raise RecipeError(
            f"dataset.class_map of {dataset.head_classes}: this dataset's classes are the head's "
            "outputs: set class_map for other datasets, below dataset.per_dataset"
        )
    train_sets = [*dataset.sets, *dataset.evaluate_on, *dataset.train_sets]
    of_ri = [*filter(None, [dataset.upstream]), *dataset.sets]
    of_keys = {"sets": of_ri, "evaluate_on": dataset.evaluated_sets, "train_sets": train_sets}
    of_keys["probe_sets"] = [*dataset.known, *dataset.probe_sets]
    for key, names in of_keys.items():
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(f"dataset.{key} names {', '.join(twice)} twice")
