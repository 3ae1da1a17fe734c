"""What `launch.py` does once imports are safe: it trains and evaluates a cell."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from engine.machine.entry import DEBUG, guarded


def launch(argv: Sequence[str]) -> int:
    """Exit code of `launch.py` with these words."""
    return guarded(lambda: _launch(list(argv)))


def _launch(argv: list[str]) -> int:
    from engine.machine import ranks

    words = ranks.strip_launcher_words(argv)
    flags = {word for word in words if word.startswith("-")}
    overrides = [word for word in words if not word.startswith("-")]
    unknown = flags - {"--print", "--debug", "--help", "-h"}
    if unknown:
        raise ValueError(f"unknown option {sorted(unknown)[0]}; options: --print, --debug, --help")
    if "--debug" in flags:
        os.environ[DEBUG] = "1"
    names = [word.partition("=")[2] for word in overrides if word.startswith("recipe=")]
    if flags & {"--help", "-h"} or not (overrides and all(names)):
        _list_recipes()
        return 0
    if not names:
        raise ValueError(f"{overrides[0]!r} names no recipe; write recipe=NAME; recipe= lists them")
    if len(names) > 1:
        raise ValueError(f"recipe= is given {len(names)} times; a command trains a single cell")
    return _train(names[0], tuple(w for w in overrides if not w.startswith("recipe=")), flags)


def _train(name: str, overrides: tuple[str, ...], flags: set[str]) -> int:
    from engine import recipe
    from engine.grid.build import Builder
    from engine.machine import quiet, ranks
    from engine.recipe.request import Request

    if any(word.startswith("methods=") for word in overrides):
        raise ValueError(
            "methods= selects methods of `rib campaign`; a single cell takes method=NAME"
        )
    request = Request(name, overrides)
    resolved = request.recipe()
    if "--print" in flags:
        print(recipe.dump(resolved), end="")
        return 0
    quiet.libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = ranks.start(resolved.device)
    from engine.commands import outcome
    from engine.store.alone import alone

    for builder in Builder(request, resolved, device).seeded():
        cell = builder.build()
        with alone(builder.store, f"{cell.name}-evaluated"):
            outcome.show(builder.run, cell)
    ranks.stop()
    return 0


def _list_recipes() -> None:
    from engine import recipe

    print("deepspeed engine/launch.py recipe=NAME [key=value ...]\n\nRecipes:")
    for name in recipe.names():
        print(f"  {name:<32} {recipe.describe(name)}")
    print("\nAny key of the resolved recipe can be set; --print shows it.")
    print("--debug shows the traceback behind an error.")
