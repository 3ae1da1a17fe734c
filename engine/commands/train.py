"""`rib train` and `launch.py`: train one cell and evaluate it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from engine.cells.plan_cell import plan_cell
from engine.commands import recipes
from engine.machine.terminal import announce
from engine.recipe.finder import allow_users_files
from engine.recipe.overrides import Override, of_word
from engine.store.use import in_use

HEAD = """\
rib train CAMPAIGN/METHOD [key=value ...], such as emoji/ewc, or a YAML file in place of
CAMPAIGN/METHOD. deepspeed engine/launch.py recipe=CAMPAIGN/METHOD trains on several GPUs."""
TAIL = "You can override any key of the resolved recipe; --print shows it."


def run(arguments: argparse.Namespace) -> None:
    """Train the cell of `recipe=NAME`, or of a first word NAME; without a name, list recipes."""
    words = arguments.words
    if words and "=" not in words[0]:
        words = [f"recipe={words[0]}", *words[1:]]
    given = [*map(of_word, words), *arguments.overrides]
    names = [override.value for override in given if override.key == "recipe"]
    if not (given and all(names)):
        print(HEAD, recipes.everything(), TAIL, sep="\n\n")
    elif not names:
        raise ValueError(
            f"{given[0].text!r} names no recipe: put recipe=NAME first (recipe= lists them)"
        )
    elif len(names) > 1:
        raise ValueError(
            f"recipe= is given {len(names)} times: name one recipe; a command trains one cell"
        )
    else:
        overrides = [override for override in given if override.key != "recipe"]
        _train(names[0], overrides, show=arguments.print)


def _train(name: str, overrides: Sequence[Override], *, show: bool) -> None:
    if show:
        print(plan_cell(name, overrides).dump(), end="")
        return
    # Find most mistakes before the imports, which take seconds.
    plan_cell(name, overrides)
    announce(f"reading the recipe {name}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engine.cells.build import Builder
    from engine.cells.users_kinds import encode_apart
    from engine.commands import outcome
    from engine.machine import ranks

    with allow_users_files():
        cell = plan_cell(name, overrides)
        device = ranks.start(cell.recipe.device)
        encode_apart(cell, [*cell.recipe.base_sets, *cell.recipe.trained_sets])
        for builder in Builder(cell, device).seeded():
            with in_use(builder.store):
                trained = builder.build()
                with builder.alone(f"{trained.name}-evaluated"):
                    outcome.show(builder, trained)
    ranks.stop()
