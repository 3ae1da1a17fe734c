"""Seed replicates: some columns of a campaign are trained a second time, with the next seed.

`engine.measures.seeds` estimates the variance between training seeds from the difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import RecipeError
from engine.recipe.campaigns import REPLICATES, TRIALS, VARY
from engine.recipe.grid_keys import GridKeys
from engine.recipe.schema import Recipe


def replicated_columns(
    grid: GridKeys, downstreams: Sequence[str], cells: Sequence[Recipe]
) -> list[tuple[str, int]]:
    """The downstream datasets to train on again, with the seed: the middle one, or several spread
    evenly.

    Campaigns list datasets from near to far. There are no replicates if seeds, settings or trials
    vary, or with a single row or no more columns than replicates. Raises RecipeError if the command
    line requests replicates then.
    """
    first, obstacle = cells[0], ""
    if grid.vary or grid.trials or first.seeds > 1:
        obstacle = f"{VARY}, {TRIALS} or several seeds"
    elif len(cells) == 1 or len(downstreams) <= grid.replicates:
        obstacle = f"{len(cells)} of a campaign's rows and {len(downstreams)} of its columns"
    if obstacle and grid.replicates and REPLICATES in grid.given:
        raise RecipeError(
            f"{grid.source(REPLICATES)}: {REPLICATES}={grid.replicates} needs at least two rows, "
            "a single seed and setting, and more columns than replicates, and does not work with "
            f"{obstacle}; leave it out"
        )
    count = 0 if obstacle else grid.replicates
    middles = [(2 * k + 1) * len(downstreams) // (2 * count) for k in range(count)]
    return [(downstreams[middle], first.seed + 1) for middle in middles]
