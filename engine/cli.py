"""`rib`: the command line of the engine.

`engine.commands.arguments` declares every command's arguments, and the function of
`engine.commands` that runs it. Overrides (`key=value`) are removed before argparse parses the rest,
so they can be anywhere and do not become values of an option.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from collections.abc import Sequence

from engine.commands.arguments import COMMANDS, build_parser
from engine.did_you_mean import closest, nearest
from engine.machine import entry
from engine.machine.terminal import announce


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rib` with these arguments. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:
        os.environ[entry.DEBUG] = "1"
        words = [word for word in words if word != "--debug"]
    # Even if another package hides ours, `rib doctor` runs, to report that.
    return entry.guarded(lambda: _run(words), may_be_hidden=words[:1] == ["doctor"])


def _run(words: Sequence[str]) -> int | None:
    arguments = parse(words)
    command = COMMANDS[arguments.command]
    if command.imports_torch:
        announce(f"rib {arguments.command}: importing torch")
    return pkgutil.resolve_name(f"engine.commands.{command.runs}")(arguments)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; `overrides` become `Override` objects.

    Raises ValueError for invalid arguments, and SystemExit, as argparse does, after `--help`.
    """
    name = next(iter(words), "")
    if name not in COMMANDS:
        if name and not name.startswith("-"):
            raise ValueError(f"there is no command {name!r}{nearest(name, COMMANDS)}")
        return build_parser()[0].parse_args(words)
    command = build_parser([name])[1][name]
    rest, overrides = _split(command, words[1:])
    arguments, unknown = command.parse_known_intermixed_args(rest)
    if unknown:
        hint = _instead(command, unknown[0], hasattr(arguments, "overrides"))
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if overrides and not hasattr(arguments, "overrides"):
        command.error(f"unrecognized arguments: {' '.join(overrides)}")
    if given := [*getattr(arguments, "overrides", ()), *overrides]:
        from engine.recipe.overrides import of_word

        arguments.overrides = list(map(of_word, given))
    return arguments


def _instead(command: argparse.ArgumentParser, word: str, has_settings: bool) -> str:
    """The options, and settings if the command has these, that an unknown option may mean."""
    from engine.recipe.effects import values_of
    from engine.recipe.overrides import flat
    from engine.recipe.schema import Affects, Recipe

    option = word.partition("=")[0]
    options = command._option_string_actions
    meant = [name for name in options if name.startswith(option)]
    meant = meant or [*filter(None, [closest(option, options, 0.8)])]
    name = option.strip("-").replace("-", "_")
    if has_settings:
        keys = flat(values_of(Recipe(), set(Affects)))
        meant += [f"{key}=VALUE" for key in keys if key.rpartition(".")[2] == name]
    return f"; did you mean {' or '.join(meant[:3])}?" if meant else ""


def _split(command: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into those for argparse and the overrides.

    The argument after an option with one value is always that value.
    """
    options = command._option_string_actions  # argparse has no public way to list them
    with_value = {option for option, action in options.items() if action.nargs is None}
    rest: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        is_override = before not in with_value and "=" in word and _is_override(word)
        (overrides if is_override else rest).append(word)
    return rest, overrides


def _is_override(word: str) -> bool:
    """Whether a word is an override such as `train.epochs=1`, not a path or NAME=FOLDER.

    An unknown dotted key counts too, so that the error can suggest the nearest key.
    """
    from engine.recipe.campaigns import OF_GRID
    from engine.recipe.schema import Recipe

    key, _, value = word.partition("=")
    section = key.partition(".")[0]
    if not section.isidentifier() or os.path.exists(word):
        return False
    is_key = section in Recipe.__annotations__ or section in OF_GRID
    return is_key or (section != key and not os.path.exists(value))


if __name__ == "__main__":
    sys.exit(main())
