"""The columns of a campaign: the sets that are fine-tuned on, in every setting of what varies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import recipe
from engine.errors import RecipeError, nearest
from engine.grid.cell_plan import Scalar
from engine.recipe import text
from engine.recipe.campaigns import DOWNSTREAMS, VARY
from engine.recipe.checks import check_terms
from engine.recipe.schema import Recipe

SECTIONS = ("optimizer", "train")  # what may vary: it changes training and nothing else
SEED = "seed"
KEYS = ("dataset.shots", "dataset.portion", "method.variant", SEED)
FIXED = {f"method.{name}" for name in ("name", "title", "module")}  # which make another method
MOST = 10_000  # columns; more are a mistake in `vary`
LONGEST = 200  # bytes of a column's name, of which files of up to 255 are named


@dataclass(frozen=True)
class Column:
    """All methods, fine-tuned on a set in a setting: a job.

    name: can name a file. setting: as `engine.measures.rows.Arm`. settings: the values of the keys
    that vary, and of a seed, over which numbers are means.
    """

    name: str
    downstream: str
    setting: str = ""
    settings: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """The name of its job."""
        return f"column-{self.name}"

    @property
    def varied(self) -> dict[str, Scalar]:
        """The settings but the seed."""
        return {key: value for key, value in self.settings.items() if key != SEED}


def columns_of(grid: recipe.GridKeys, cells: Sequence[Recipe]) -> tuple[Column, ...]:
    """The columns of a campaign, set by set; `cells`: a resolved recipe of each of its methods.

    Every setting is resolved for every method. Raises RecipeError, naming the campaign's file or
    the command line, for a set that the data set lacks or that is named twice, for a key or value
    that cannot vary, and for more than `MOST` columns.
    """
    dataset = cells[0].dataset
    downstreams = [name for name in dataset.sets if name in dataset.trainable]
    if grid.downstreams is not None:
        downstreams = grid.downstreams
    source = grid.source(DOWNSTREAMS)
    for name in downstreams:
        if name not in dataset.known:
            raise RecipeError(
                f"{source}: downstreams: {name!r} is not a set of {dataset.name}"
                f"{nearest(name, dataset.known)}"
            )
        try:
            check_terms(dataset, name)
        except RecipeError as error:
            raise RecipeError(f"{source}: downstreams: {error}") from error
        if downstreams.count(name) > 1:
            raise RecipeError(f"{source}: downstreams names {name} twice")
    source = grid.source(VARY)
    _check_keys(source, grid.vary, cells)
    count = len(downstreams) * math.prod(map(len, grid.vary.values()))
    if count > MOST:
        raise RecipeError(f"{source}: vary makes {count:,} columns; {MOST:,} at most")
    by_key = [[f"{key}={text(value)}" for value in values] for key, values in grid.vary.items()]
    try:
        for words, cell in itertools.product(by_key, cells):
            _check_twice(words, cell)
        settings = list(itertools.product(*by_key))
        for words, cell in itertools.product(settings, cells):
            recipe.varied(cell, words)
    except RecipeError as error:
        raise RecipeError(f"{source} (vary): {error}") from error
    columns = []
    for downstream, words in itertools.product(downstreams, settings):
        values = {
            key: recipe.value_of(cells[0], w) for key, w in zip(grid.vary, words, strict=True)
        }
        setting = ",".join(w for key, w in zip(grid.vary, words, strict=True) if key != SEED)
        name = ",".join([downstream, *words])
        if len(name.encode()) > LONGEST:
            raise RecipeError(
                f"{source}: vary: {name} is the name of a file, and longer than {LONGEST} bytes; "
                "vary fewer keys"
            )
        columns.append(Column(name, downstream, setting, values))
    return tuple(columns)


def _check_keys(source: str, vary: Mapping[str, Sequence[Any]], cells: Sequence[Recipe]) -> None:
    """Raise RecipeError for a key that cannot vary, and for what is no list of plain values."""
    for key, values in vary.items():
        section = key.partition(".")[0]
        is_option = section == "method" and len(cells) == 1 and key not in FIXED
        if section not in SECTIONS and key not in KEYS and not is_option:
            raise RecipeError(
                f"{source}: vary: {key} cannot vary; keys of {', '.join(SECTIONS)} can, and "
                f"{', '.join(KEYS)}. For several values of a method's option leave its row alone "
                "(`methods=[ROW]`) or give it several rows (`base`), and make a campaign for each "
                "value of what all columns share"
            )
        if not isinstance(values, list) or not values:
            raise RecipeError(
                f"{source}: vary: {key} needs a list of values, as in `{key}: [1, 2]`"
            )
        for value in values:
            is_safe = not isinstance(value, str) or value.replace("_", "").isalnum()
            if not isinstance(value, Scalar) or not is_safe:
                raise RecipeError(
                    f"{source}: vary: {key} cannot be {value!r}; values are numbers, true, false "
                    "or words of letters, digits and _, because they become names of files"
                )
        if key == SEED and cells[0].seeds > 1:
            raise RecipeError(
                f"{source}: vary: seed and seeds={cells[0].seeds} both say the seeds; give one of "
                "them"
            )


def _check_twice(words: Sequence[str], cell: Recipe) -> None:
    """Raise RecipeError where two words give a key the same value."""
    values: dict[Any, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        typed = recipe.value_of(cell, word)
        if typed in values:
            before = values[typed]
            same = "" if before == value else f", as {before} and {value}"
            raise RecipeError(f"{key} names {text(typed)} twice{same}")
        values[typed] = value
