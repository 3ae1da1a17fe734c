"""The columns of a campaign: the sets that are fine-tuned on, in every setting of what varies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import recipe
from engine.errors import RecipeError, nearest
from engine.recipe.checks import check_terms
from engine.recipe.schema import Recipe

SECTIONS = ("optimizer", "train")  # what may vary: it changes training and nothing else
KEYS = ("dataset.shots", "dataset.portion", "method.variant")
MOST = 10_000  # columns; more are a mistake in `vary`
Scalar = bool | int | float | str


@dataclass(frozen=True)
class Column:
    """All methods, fine-tuned on a set in a setting: a job.

    name: can name a file. setting: as `engine.measures.rows.Arm`. overrides: the setting's words.
    """

    name: str
    downstream: str
    setting: str = ""
    overrides: tuple[str, ...] = ()


def columns_of(grid: recipe.GridKeys, cells: Sequence[Recipe]) -> tuple[Column, ...]:
    """The columns of a campaign, set by set; `cells`: a resolved recipe of each of its methods.

    Every setting is resolved for every method. Raises RecipeError, naming the campaign's file, for
    a set that the data set lacks or that is named twice, and for a key or value that cannot vary.
    """
    dataset = cells[0].dataset
    downstreams = [name for name in dataset.sets if name in dataset.trainable]
    if grid.downstreams is not None:
        downstreams = grid.downstreams
    for name in downstreams:
        if name not in dataset.known:
            raise RecipeError(
                f"{grid.file}: downstreams: {name!r} is not a set of {dataset.name}"
                f"{nearest(name, dataset.known)}"
            )
        try:
            check_terms(dataset, name)
        except RecipeError as error:
            raise RecipeError(f"{grid.file}: downstreams: {error}") from error
        if downstreams.count(name) > 1:
            raise RecipeError(f"{grid.file}: downstreams names {name} twice")
    settings = _settings(grid.file, grid.vary)
    if (count := len(downstreams) * len(settings)) > MOST:
        raise RecipeError(f"{grid.file}: vary makes {count} columns; {MOST} at most")
    for words, cell in itertools.product(settings, cells):
        try:
            recipe.varied(cell, words)
        except RecipeError as error:
            raise RecipeError(f"{grid.file} (vary): {error}") from error
    return tuple(
        Column(",".join([name, *words]), name, ",".join(words), words)
        for name, words in itertools.product(downstreams, settings)
    )


def _settings(file: str, vary: Mapping[str, Sequence[Any]]) -> list[tuple[str, ...]]:
    """The words of every combination of the varied values; one without words if nothing varies."""
    for key, values in vary.items():
        if key.partition(".")[0] not in SECTIONS and key not in KEYS:
            raise RecipeError(
                f"{file}: vary: {key} cannot vary; keys of {', '.join(SECTIONS)} can, and "
                f"{', '.join(KEYS)}. For several seeds set `seeds`, for several values of a "
                "method's option give it several rows (`base`), and make a campaign for each value "
                "of what all columns share"
            )
        if not isinstance(values, list) or not values:
            raise RecipeError(f"{file}: vary: {key} needs a list of values, as in `{key}: [1, 2]`")
        for value in values:
            _check_value(file, key, value)
        texts = [text(value) for value in values]
        if twice := sorted({value for value in texts if texts.count(value) > 1}):
            raise RecipeError(f"{file}: vary: {key} names {', '.join(twice)} twice")
    by_key = [[f"{key}={text(value)}" for value in values] for key, values in vary.items()]
    return list(itertools.product(*by_key))


def _check_value(file: str, key: str, value: Any) -> None:
    is_finite = not isinstance(value, float) or math.isfinite(value)
    is_safe = not isinstance(value, str) or value.replace("_", "").isalnum()
    if not isinstance(value, Scalar) or not (is_finite and is_safe):
        raise RecipeError(
            f"{file}: vary: {key} cannot be {value!r}; values are numbers, true, false or words of "
            "letters, digits and _, because they become names of files"
        )


def text(value: Scalar) -> str:
    """A value as a recipe writes it: the shortest text that is read as the same value."""
    return str(value).lower() if isinstance(value, bool) else str(value)
