"""The columns of a campaign: the sets that are fine-tuned on, in every setting of what varies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import recipe
from engine.errors import RecipeError, nearest
from engine.measures.setting import PLAIN, Scalar, Setting
from engine.recipe import text
from engine.recipe.campaigns import DOWNSTREAMS, PROBE, VARY
from engine.recipe.checks import check_terms
from engine.recipe.schema import Recipe
from loaders.names import Name, identifier

SECTIONS = ("optimizer", "train")  # what may vary: it changes training and nothing else
SEED = "seed"
KEYS = ("dataset.shots", "dataset.portion", "method.variant", SEED)
FIXED = {f"method.{name}" for name in ("name", "title", "module")}  # which make another method
MOST = 10_000  # columns; more are a mistake in `vary`
LONGEST = 200  # bytes of a column's name, of which files of up to 255 are named


@dataclass(frozen=True)
class Column:
    """All methods, fine-tuned on a set in a setting: a job.

    settings: the values of the keys that vary, a seed among them. is_probe: whether it trains
    another column once more, with another seed; its numbers are no part of any mean.
    """

    downstream: Name
    settings: Setting = PLAIN
    is_probe: bool = False

    @property
    def name(self) -> str:
        """Set and settings, as a part of a file's name."""
        return ",".join(filter(None, (self.downstream, str(self.settings))))

    @property
    def job(self) -> str:
        """The name of its job and of its files, which a shell takes for nothing else."""
        return f"column-{self.id}"

    @property
    def id(self) -> str:
        """Its name for Snakemake and Slurm, for any dataset name."""
        return identifier(self.name)

    @property
    def setting(self) -> Setting:
        """The settings of its arms: all but the seed, over which numbers are means."""
        return self.settings.without(SEED)


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
    settings = [
        dict(zip(grid.vary, values, strict=True))
        for values in itertools.product(*grid.vary.values())
    ]
    try:
        for (key, values), cell in itertools.product(grid.vary.items(), cells):
            _check_twice(key, values, cell)
        for setting, cell in itertools.product(settings, cells):
            recipe.varied(cell, setting)
    except RecipeError as error:
        raise RecipeError(f"{source} (vary): {error}") from error
    columns = []
    for downstream, given in itertools.product(downstreams, settings):
        values = {key: recipe.value_of(cells[0], key, value) for key, value in given.items()}
        column = Column(downstream, Setting(values))
        if len(column.name.encode()) > LONGEST:
            raise RecipeError(
                f"{source}: vary: {column.name} is the name of a file, and longer than {LONGEST} "
                "bytes; vary fewer keys"
            )
        columns.append(column)
    return (*columns, *_probes(grid, downstreams, cells))


def _probes(
    grid: recipe.GridKeys, downstreams: Sequence[str], cells: Sequence[Recipe]
) -> list[Column]:
    """Columns once more, with the next seed: the middle one, or several that lie evenly in their
    list, since sets are listed from near to far.

    None where seeds or settings vary, and of a single row or column: there is nothing to compare,
    or several seeds cost as much. Raises RecipeError where the command line asks for one there.
    """
    first, obstacle = cells[0], ""
    if grid.vary or first.seeds > 1:
        obstacle = f"{VARY} or several seeds"
    elif len(cells) == 1 or len(downstreams) <= grid.probe:
        obstacle = f"{len(cells)} of a campaign's rows and {len(downstreams)} of its columns"
    if obstacle and grid.probe and PROBE in grid.given:
        raise RecipeError(
            f"{grid.source(PROBE)}: {PROBE}={grid.probe} goes with two rows or more, one seed and "
            f"setting, and more columns than it trains again, not with {obstacle}; leave it out"
        )
    if obstacle:
        return []
    seed = first.seed + 1
    return [
        Column(name, Setting({SEED: seed}), is_probe=True)
        for name in (
            downstreams[(2 * k + 1) * len(downstreams) // (2 * grid.probe)]
            for k in range(grid.probe)
        )
    ]


def _check_keys(source: str, vary: Mapping[str, Sequence[Any]], cells: Sequence[Recipe]) -> None:
    """Raise RecipeError for a key that cannot vary, or if its value is not a list of plain
    values."""
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


def _check_twice(key: str, values: Sequence[Any], cell: Recipe) -> None:
    """Raise RecipeError where two of these values are the same in the key's type."""
    before: dict[Any, Any] = {}
    for value in values:
        typed = recipe.value_of(cell, key, value)
        if typed in before:
            texts = list(map(text, (before[typed], value)))
            same = "" if texts[0] == texts[1] else f", as {' and '.join(texts)}"
            raise RecipeError(f"{key} names {text(typed)} twice{same}")
        before[typed] = value
