"""Trials: the values of a method that `trials: N` of a campaign draws from its search ranges."""

from __future__ import annotations

import dataclasses
import random

from engine.measures.rows import PLAIN, Setting
from engine.recipe.schema import Recipe
from engine.recipe.typed import value_of

STRATA = 3  # equal parts of a key's range, each drawn from once in as many trials


def trials_of(recipe: Recipe, count: int) -> tuple[Setting, ...]:
    """The values of `count` trials of a cell, by dotted key: none in the first, which is the recipe
    itself, then draws from each key's search range (`schema.searched`).

    Draws are log-uniform, rounded to three digits and stratified: trials 1 to 3, 4 to 6 and
    so on draw a key's value once from each third of its range, in an order of its own. Draws
    depend only on the recipe's value and seed, the trial and the key: methods of equal learning
    rates draw equal rates, and more trials contain fewer. A method without optimizer steps draws no
    learning rate. Raises RecipeError if a value is impossible.
    """
    sections = ["method", *(["optimizer"] if recipe.method.takes_steps else [])]
    keys = {
        f"{section}.{field.name}": (getattr(values, field.name), field.metadata["factor"])
        for section in sections
        for values in [getattr(recipe, section)]
        for field in dataclasses.fields(values)
        if "factor" in field.metadata
    }
    trials = [PLAIN]
    for trial in range(1, count):
        drawn = {}
        block, place = divmod(trial - 1, STRATA)
        for key, (value, factor) in keys.items():
            of_block = random.Random(f"{recipe.seed} {block} {key}")
            order = of_block.sample(range(STRATA), STRATA)
            within = random.Random(f"{recipe.seed} {trial} {key}").random()
            share = (order[place] + within) / STRATA
            number = value * factor ** (2 * share - 1)
            number = max(1, round(number)) if isinstance(value, int) else float(f"{number:.3g}")
            drawn[key] = value_of(recipe, key, number)
        trials.append(Setting(drawn))
    return tuple(trials[:count])
