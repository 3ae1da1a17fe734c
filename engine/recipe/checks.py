"""Whether the values of a recipe are possible, checked before any work is done."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from engine.errors import RecipeError, nearest
from engine.recipe.schema import DatasetRecipe, Recipe

ALLOWED = {
    "train.precision": ("auto", "fp32", "bf16"),
    "evaluate.precision": ("auto", "fp32", "bf16"),
    "train.compile": ("auto", "always", "never"),
    "evaluate.compile": ("auto", "always", "never", "cuda_graphs"),
    "evaluate.split": ("all", "holdout"),
    "train.zero_stage": (0, 1),
    "optimizer.name": ("adamw", "sgd", "apex_adamw", "apex_sgd"),
    "method.variant": ("canonical", "paper"),
    "dataset.kind": ("folder", "emoji", "imagenet"),
    "dataset.objectnet": ("corrected", "paper"),
    "dataset.objectnet_terms": ("test_only", "accepted"),
    "dataset.pack_format": ("raw", "jpeg"),
    "dataset.undecodable": ("refuse", "skip"),
    "model.interpolation": (None, "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "model.crop_mode": (None, "center", "squash", "border"),
    "model.weights.source": ("timm", "open_clip", "pypi", "file", "random"),
    "model.weights.templates": ("full", "simple"),
    "model.weights.match": ("names", "order"),
    "source": ("auto", "resident", "stream"),
    "device": ("auto", "cpu", "cuda"),
}
TRACKERS = ("tensorboard", "wandb", "trackio")  # and a user's `module:Class`
REMOVED = {  # keys of earlier versions, and what to do instead
    f"model.head.{name}": "; a head is fitted to its optimum: set model.head.l2 in its place"
    for name in ("epochs", "batch_size", "lr", "weight_decay")
}
FEWEST_FOR_CKA = 4  # its estimator divides by n (n - 3), for n images
_ANY = math.inf
# What is larger is a slip of the pen: it would fill the memory before anything could refuse it.
_PIXELS, _BATCH, _WIDTH = 4096, 65_536, 100_000
_SEED = (0, 2**63 - 1)  # torch's
# Key: lowest and highest value; a third entry names the limit that is not allowed itself.
RANGES: dict[str, tuple[Any, ...]] = {
    "seed": _SEED,
    "seeds": (1, 1000),
    "threads": (1, 1024),
    "train.epochs": (1, 100_000),
    "train.batch_size": (1, _BATCH),
    "train.accumulation": (1, _BATCH),
    "train.warmup_steps": (0, _ANY),
    "train.clip": (0, _ANY),
    "train.snapshots": (0, 1000),
    "train.checkpoint_minutes": (0, _ANY),
    "evaluate.batch_size": (1, _BATCH),
    "evaluate.budget": (0, 1, "low"),
    "evaluate.cka": (0, _ANY),
    "optimizer.lr": (0, _ANY, "low"),
    "optimizer.momentum": (0, 1, "high"),
    "optimizer.eps": (0, _ANY),
    "optimizer.weight_decay": (0, _ANY),
    "model.image_size": (1, _PIXELS),
    "model.crop": (0.05, 1),
    "model.projection": (0, _WIDTH),
    "model.head.l2": (0, _ANY, "low"),
    "model.weights.photos_right": (0, 20),
    "dataset.seed": _SEED,
    "dataset.classes": (0, _WIDTH),
    "dataset.renderings": (1, 1000),
    "dataset.source_px": (1, _PIXELS),
    "dataset.holdout": (0, 1, "high"),
    "dataset.train_images": (0, _ANY),
    "dataset.shots": (0, _ANY),
    "dataset.portion": (0, 1, "low"),
}
# A leading dot marks unfinished files; braces are Snakemake's. Surrogates are no UTF-8.
_NAME = re.compile(r"(?!\.)[^/\\{}\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_NAME_BYTES = 100  # a cell's folder is named after a method and a set


def check(recipe: Recipe) -> None:
    """Raise RecipeError naming an impossible key."""
    _check_lists("", dataclasses.asdict(recipe))
    for key, allowed in ALLOWED.items():
        value = attrgetter(key)(recipe)
        if value not in allowed:
            hint = nearest(str(value), map(str, allowed))
            raise RecipeError(f"{key}={value!r} is not possible{hint}")
    for key, limits in RANGES.items():
        value = attrgetter(key)(recipe)
        if value is not None:
            in_range(key, value, *limits)
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
    for number in recipe.optimizer.betas:
        in_range("optimizer.betas", number, 0, 1, "high")
    _check_channels("model.mean", recipe.model.mean, 0, 1)
    _check_channels("model.std", recipe.model.std, 0, _ANY, "low")
    if recipe.dataset.shots and recipe.dataset.portion < 1:
        raise RecipeError(
            f"dataset.shots={recipe.dataset.shots} and dataset.portion={recipe.dataset.portion:g} "
            "both take a part of the training images; give only one of them"
        )
    recipe.method.check(recipe)
    _check_names(recipe)
    if recipe.downstream not in (known := recipe.dataset.known):
        raise RecipeError(
            f"downstream={recipe.downstream!r} is not a set of {recipe.dataset.name}"
            f"{nearest(recipe.downstream, known)}"
        )
    check_terms(recipe.dataset, recipe.downstream)


def check_terms(dataset: DatasetRecipe, downstream: str) -> None:
    """Raise RecipeError where a licence forbids to fine-tune on a set of the data set."""
    if downstream not in dataset.trainable:
        raise RecipeError(
            f"{downstream} is a test set: its licence forbids tuning a model's parameters on it. "
            "If its authors gave you leave, set dataset.objectnet_terms=accepted"
        )


def check_name(key: str, name: str) -> None:
    """Raise RecipeError for a name that cannot be part of a path."""
    if not _NAME.fullmatch(name) or len(name.encode()) > _NAME_BYTES:
        raise RecipeError(
            f"{key}: {name!r:.150} cannot be part of a path; use at most "
            f"{_NAME_BYTES} bytes, without slashes, braces, line ends or a leading '.'"
        )


def check_budget(budget: float) -> None:
    """Raise RecipeError for a budget that is not in (0, 1]."""
    in_range("evaluate.budget", budget, *RANGES["evaluate.budget"])


def in_range(key: str, value: float, low: float, high: float, outside: str = "") -> None:
    """Raise RecipeError unless the value is finite and from low to high.

    outside: `low` or `high`, the limit that is not allowed itself.
    """
    above = value > low if outside == "low" else value >= low
    below = value < high if outside == "high" else value <= high
    if not (math.isfinite(value) and above and below):
        least = f"above {low}" if outside == "low" else f"at least {low}"
        most = f" and {'below' if outside == 'high' else 'at most'} {high}"
        raise RecipeError(f"{key}={value} must be {least}{most if high < _ANY else ''}")


def _check_lists(key: str, value: Any) -> None:
    """Raise RecipeError for a list in a list: OmegaConf takes it for any type of its elements."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_lists(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list | tuple):
        for element in value:
            if isinstance(element, list | tuple | dict):
                raise RecipeError(f"{key}: {element!r:.100} cannot be an element of the list")


def _check_channels(key: str, values: Sequence[float] | None, *limits: Any) -> None:
    """Check the values of red, green and blue, where a recipe gives them."""
    if values is not None and len(values) != 3:
        raise RecipeError(f"{key}={list(values)} must be three numbers, one a channel")
    for value in values or ():
        in_range(key, value, *limits)


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise RecipeError unless the value is allowed."""
    if value not in allowed:
        raise RecipeError(f"{key}={value!r} is not possible{nearest(value, allowed)}")


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
        from loaders.benchmarks import (
            emoji,
        )  # late: it takes 0.1 s

        for key, name in sets:
            if name not in emoji.DOWNSTREAM:
                raise RecipeError(
                    f"{key}: {name!r} is no emoji style{nearest(name, emoji.DOWNSTREAM)}"
                )
    for key, names in (("sets", dataset.sets), ("train_sets", dataset.known)):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(f"dataset.{key} names {', '.join(twice)} twice")
