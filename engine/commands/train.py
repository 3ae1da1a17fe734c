"""`rib train`, and what `launch.py` does once imports are safe: train and evaluate a cell."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from engine.machine import first_line, quiet
from engine.machine.entry import DEBUG, guarded

LAUNCH = "deepspeed engine/launch.py"


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("train", help="train a cell and evaluate it on every set")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="recipe=NAME, or NAME, first; recipe= lists them",
    )  # fmt: skip
    parser.add_argument("--print", action="store_true", help="show the resolved recipe and stop")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    return _start(arguments.overrides, "rib train", show=arguments.print)


def launch(argv: Sequence[str]) -> int:
    """Exit code of `launch.py` with these words."""
    return guarded(lambda: _launch(list(argv)))


def _launch(argv: list[str]) -> int:
    words = strip_launcher_words(argv)
    flags = {word for word in words if word.startswith("-")}
    overrides = [word for word in words if not word.startswith("-")]
    unknown = flags - {"--print", "--debug", "--help", "-h"}
    if unknown:
        raise ValueError(f"unknown option {sorted(unknown)[0]}; options: --print, --debug, --help")
    if "--debug" in flags:
        os.environ[DEBUG] = "1"
    return _start([] if flags & {"--help", "-h"} else overrides, LAUNCH, show="--print" in flags)


def strip_launcher_words(words: list[str]) -> list[str]:
    """Command-line words without the `--local_rank=N` that the deepspeed launcher adds."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--local_rank", "--local-rank")
    return parser.parse_known_args(words)[1]


def _start(overrides: Sequence[str], command: str, *, show: bool) -> int:
    """Train the cell of `recipe=NAME`, or of `NAME` before all else; list recipes without a name.

    show: print the resolved recipe in place of training.
    """
    if overrides and "=" not in overrides[0]:
        overrides = [f"recipe={overrides[0]}", *overrides[1:]]
    names = [word.partition("=")[2] for word in overrides if word.startswith("recipe=")]
    if not (overrides and all(names)):
        _list_recipes(command)
        return 0
    if not names:
        raise ValueError(f"{overrides[0]!r} names no recipe; write recipe=NAME; recipe= lists them")
    if len(names) > 1:
        raise ValueError(f"recipe= is given {len(names)} times; a command trains a single cell")
    return _train(names[0], tuple(w for w in overrides if not w.startswith("recipe=")), show=show)


def _train(name: str, overrides: tuple[str, ...], *, show: bool) -> int:
    from engine import recipe

    if any(word.startswith("methods=") for word in overrides):
        raise ValueError(
            "methods= selects methods of `rib campaign`; a single cell takes method=NAME"
        )
    recipe.outline(name, overrides)  # most mistakes show before imports that take seconds
    first_line.show(f"reading the recipe {name}")
    if show:
        print(recipe.dump(recipe.load(name, overrides)), end="")
        return 0
    quiet.libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engine.grid import cell_plan
    from engine.grid.build import Builder
    from engine.machine import ranks

    cell = cell_plan.resolve(name, overrides)
    device = ranks.start(cell.recipe.device)
    from engine.commands import outcome
    from engine.store.alone import alone

    for builder in Builder(cell, device).seeded():
        trained = builder.build()
        with alone(builder.store, f"{trained.name}-evaluated"):
            outcome.show(builder.run, trained)
    ranks.stop()
    return 0


def _list_recipes(command: str) -> None:
    from engine import recipe

    print(f"{command} recipe=NAME [key=value ...]\n\nRecipes:")
    for name in recipe.names():
        print(f"  {name:<32} {recipe.describe(name)}")
    print("\nAny key of the resolved recipe can be set; --print shows it.")
    print("--debug shows the traceback behind an error.")
