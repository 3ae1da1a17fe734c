"""Whether the values of a recipe are possible, checked before any work is done."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from engine.errors import RecipeError, nearest
from engine.recipe.schema import Recipe

ALLOWED = {
    "train.precision": ("auto", "fp32", "bf16"),
    "evaluate.precision": ("auto", "fp32", "bf16"),
    "train.compile": ("auto", "always", "never"),
    "evaluate.compile": ("auto", "always", "never", "cuda_graphs"),
    "evaluate.split": ("all", "holdout"),
    "train.zero_stage": (0, 1, 2),
    "optimizer.name": ("adamw", "sgd", "apex_adamw", "apex_sgd"),
    "method.variant": ("canonical", "paper"),
    "dataset.kind": ("folder", "emoji", "imagenet"),
    "dataset.objectnet": ("corrected", "paper"),
    "dataset.pack_format": ("raw", "jpeg"),
    "dataset.undecodable": ("refuse", "skip"),
    "model.head.kind": ("probe", "prototype"),
    "model.crop_mode": (None, "center", "squash", "border"),
    "model.weights.source": ("timm", "open_clip", "pypi", "file", "random"),
    "model.weights.templates": ("full", "simple"),
    "model.weights.match": ("names", "order"),
    "source": ("auto", "resident", "stream", "ffcv"),
    "device": ("auto", "cpu", "cuda"),
}
HINTS = {"evaluate.precision": "; how sure RI is to be, in points, is evaluate.half_width"}
REMOVED = {  # keys of earlier versions, and what to do instead
    f"model.head.{name}": "; a head is fitted to its optimum: set model.head.l2 in its place"
    for name in ("epochs", "batch_size", "lr", "weight_decay")
}
FEWEST_FOR_CKA = 4  # its estimator divides by n (n - 3), for n images
_ANY = math.inf
_SEED = (0, 2**63 - 1)  # torch's
# Key: lowest and highest value; a third entry names the limit that is not allowed itself.
RANGES: dict[str, tuple[Any, ...]] = {
    "seed": _SEED,
    "seeds": (1, _ANY),
    "threads": (1, _ANY),
    "train.epochs": (1, _ANY),
    "train.batch_size": (1, _ANY),
    "train.accumulation": (1, _ANY),
    "train.warmup_steps": (0, _ANY),
    "train.clip": (0, _ANY),
    "train.snapshots": (0, _ANY),
    "evaluate.batch_size": (1, _ANY),
    "evaluate.budget": (0, 1, "low"),
    "evaluate.half_width": (0, _ANY, "low"),
    "evaluate.cka": (0, _ANY),
    "optimizer.lr": (0, _ANY, "low"),
    "optimizer.momentum": (0, 1, "high"),
    "optimizer.eps": (0, _ANY),
    "optimizer.weight_decay": (0, _ANY),
    "model.image_size": (1, _ANY),
    "model.crop": (0, 1, "low"),
    "model.projection": (0, _ANY),
    "model.head.l2": (0, _ANY, "low"),
    "model.head.scale": (0, _ANY, "low"),
    "model.weights.photos_right": (0, 20),
    "dataset.seed": _SEED,
    "dataset.classes": (0, _ANY),
    "dataset.renderings": (1, _ANY),
    "dataset.source_px": (1, _ANY),
    "dataset.holdout": (0, 1, "high"),
    "dataset.train_images": (0, _ANY),
    "dataset.shots": (0, _ANY),
    "dataset.portion": (0, 1, "low"),
}
_NAME = re.compile(r"(?!\.)[^/\\\0]+")  # a leading dot marks unfinished files


def check(recipe: Recipe) -> None:
    """Raise RecipeError naming an impossible key."""
    for key, allowed in ALLOWED.items():
        value = attrgetter(key)(recipe)
        if value not in allowed:
            valid = nearest(str(value), map(str, allowed)) + HINTS.get(key, "")
            raise RecipeError(f"{key}={value!r} is not possible{valid}")
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
    if recipe.model.head.kind != "probe" and not recipe.model.head.fit:
        raise RecipeError(
            f"model.head.kind={recipe.model.head.kind}: the weights of {recipe.model.name} include "
            "a head; set model.head.fit=true to make another"
        )
    recipe.method.check(recipe)
    _check_names(recipe)
    if recipe.downstream not in (places := recipe.dataset.places):
        raise RecipeError(
            f"downstream={recipe.downstream!r} is not a set of {recipe.dataset.name}"
            f"{nearest(recipe.downstream, places)}"
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
    keys = [
        ("model.name", recipe.model.name),
        ("method.name", recipe.method.name),
        ("dataset.upstream", dataset.upstream),
        *(("dataset.sets", name) for name in dataset.sets),
    ]
    for key, name in keys:
        if not _NAME.fullmatch(name):
            raise RecipeError(
                f"{key}: {name!r} cannot be part of a path; use a name without '/' or a leading '.'"
            )
    if dataset.kind == "emoji":
        from loaders.benchmarks import (
            emoji,
        )  # late: it takes 0.1 s

        for name in dataset.sets:
            if name not in emoji.DOWNSTREAM:
                raise RecipeError(
                    f"dataset.sets: {name!r} is no emoji style{nearest(name, emoji.DOWNSTREAM)}"
                )
    twice = sorted({name for name in dataset.sets if dataset.sets.count(name) > 1})
    if twice:
        raise RecipeError(f"dataset.sets names {', '.join(twice)} twice")
