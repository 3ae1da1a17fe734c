"""`rib train`, which `launch.py` is too: train a cell and evaluate it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.commands import recipes
from engine.machine import first_line

if TYPE_CHECKING:
    from engine.recipe.overrides import Override

HEAD = """\
rib train recipe=NAME [key=value ...], or deepspeed engine/launch.py with these words.
NAME is CAMPAIGN/ROW, as in emoji/ewc, or a YAML file."""
TAIL = "Any key of the resolved recipe can be set; --print shows it."


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("train", help="train a cell and evaluate it on every set")
    parser.add_argument(
        "words", nargs="*", metavar="key=value",
        help="recipe=NAME, or NAME, first; recipe= lists them",
    )  # fmt: skip
    parser.add_argument("--print", action="store_true", help="show the resolved recipe and stop")
    # The launcher `deepspeed` adds it; what it says stands in the environment, too.
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    parser.set_defaults(run=run, overrides=[])


def run(arguments: argparse.Namespace) -> None:
    """Train the cell of `recipe=NAME`, or of `NAME` before all else; list recipes without a name.

    print: show the resolved recipe in place of training.
    """
    from engine.recipe.overrides import of_word

    words = arguments.words
    if words and "=" not in words[0]:
        words = [f"recipe={words[0]}", *words[1:]]
    given = [*map(of_word, words), *arguments.overrides]
    names = [each.value for each in given if each.key == "recipe"]
    if not (given and all(names)):
        print(HEAD, recipes.everything(), TAIL, sep="\n\n")
    elif not names:
        raise ValueError(
            f"{given[0].text!r} names no recipe; write recipe=NAME; recipe= lists them"
        )
    elif len(names) > 1:
        raise ValueError(f"recipe= is given {len(names)} times; a command trains a single cell")
    else:
        overrides = [each for each in given if each.key != "recipe"]
        _train(names[0], overrides, show=arguments.print)


def _train(name: str, overrides: Sequence[Override], *, show: bool) -> None:
    from engine.cells import cell_plan

    if show:
        print(cell_plan.resolve(name, overrides, run_users=False).dump(), end="")
        return
    # Most mistakes show before imports that take seconds.
    cell_plan.resolve(name, overrides, run_users=False)
    first_line.show(f"reading the recipe {name}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engine.cells.build import Builder
    from engine.machine import ranks

    cell = cell_plan.resolve(name, overrides, run_users=True)
    device = ranks.start(cell.recipe.device)
    from engine.commands import outcome
    from engine.store.alone import alone

    for builder in Builder(cell, device, run_users=True).seeded():
        trained = builder.build()
        with alone(builder.store, f"{trained.name}-evaluated"):
            outcome.show(builder.run, trained)
    ranks.stop()
