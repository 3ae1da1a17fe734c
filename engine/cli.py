"""`rib`: the command line of the engine.

Each command is a module of `engine.commands`. Overrides (`key=value`) are removed before argparse
parses the rest, so they can be anywhere and do not become values of an option.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from engine.did_you_mean import nearest
from engine.machine import entry

COMMANDS = (
    "campaign",
    "sweep",
    "train",
    "plan",
    "power",
    "status",
    "gc",
    "verify",
    "bench",
    "download",
    "encode",
    "report",
    "diff",
    "distance",
    "evaluate",
    "export",
    "merge",
    "recipes",
    "doctor",
)
MODULES = {"gc": "unneeded"}  # modules of commands with the name of one of Python's modules
ALIASES = {"metrics": "report"}
COMPLETION = "completion"  # defined here, because it needs all other commands
NO_SPACE = """
_rib() {
  _shtab_rib "$@"
  [[ "${COMPREPLY[0]-}" == *= ]] && compopt -o nospace  # the value follows
}
complete -o bashdefault -F _rib rib"""
DOCTOR = "doctor"  # runs even if another package hides ours, to report that


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rib` with these arguments. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:
        os.environ[entry.DEBUG] = "1"
        words = [word for word in words if word != "--debug"]
    return entry.guarded(lambda: _run(words), may_be_hidden=words[:1] == [DOCTOR])


def _run(words: Sequence[str]) -> int | None:
    arguments = parse(words)
    return arguments.run(arguments)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; `overrides` become `Override` objects.

    Raises SystemExit, as argparse does, after `--help` and for invalid arguments.
    """
    name = next(iter(words), "")
    known = (*COMMANDS, *ALIASES, COMPLETION)
    whole, commands = parser([ALIASES.get(name, name)]) if name in known else parser()
    if name not in commands:
        if name and not name.startswith("-"):
            whole.error(f"there is no command {name!r}{nearest(name, known)}")
        return whole.parse_args(words)
    command = commands[name]
    command.allow_abbrev = False  # so that `_split` knows every option with a value
    rest, overrides = _split(command, words[1:])
    arguments = command.parse_intermixed_args(rest)
    if overrides and not hasattr(arguments, "overrides"):
        command.error(f"unrecognized arguments: {' '.join(overrides)}")
    if given := [*getattr(arguments, "overrides", ()), *overrides]:
        from engine.recipe.overrides import of_word

        arguments.overrides = list(map(of_word, given))
    return arguments


def parser(
    names: Sequence[str] = (*COMMANDS, COMPLETION),
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of `rib`, and the parsers of the named commands, by name."""
    whole = argparse.ArgumentParser(
        prog="rib", description="Run the ImageNet-RIB benchmark of robust fine-tuning."
    )
    whole.add_argument("--version", action="version", version=f"rib {_version()}")
    whole.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group = whole.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        if name == COMPLETION:
            _add_completion(group)
        else:
            importlib.import_module(f"engine.commands.{MODULES.get(name, name)}").add(group)
    return whole, group.choices


def _split(command: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into those for argparse and the overrides.

    The argument after an option with one value is always that value.
    """
    options = command._option_string_actions  # argparse has no public way to list them
    with_value = {option for option, action in options.items() if action.nargs is None}
    rest: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        taken = before not in with_value and "=" in word and _is_override(word)
        (overrides if taken else rest).append(word)
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


def _version() -> str:
    try:
        return importlib.metadata.version("rib-engine")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _add_completion(group: argparse._SubParsersAction) -> None:
    command = group.add_parser(COMPLETION, help="write a completion script for a shell")
    command.add_argument("shell", choices=("bash", "zsh", "fish"))
    command.set_defaults(run=lambda arguments: print(completion(arguments.shell)))


def completion(shell: str) -> str:
    """A shell script that completes commands, options, and the names and keys of recipes.

    The script contains the current names, so completion starts no program.
    """
    import shtab

    from engine import recipe
    from engine.recipe.overrides import flat

    cell = recipe.load("emoji/ewc")
    benchmark = recipe.load("imagenet_rib", recipe.parsed([{"model": cell.model.name}]))
    campaigns, models = recipe.names("campaigns"), recipe.names("models")
    sets = list(dict.fromkeys([*cell.dataset.known, *benchmark.dataset.known]))
    words = {name: campaigns for name in ("name", "names", "campaign", "source")}
    words |= {"model": models, "models": models, "set": sets, "sets": sets}
    words |= {"dataset": recipe.names("datasets"), "method": recipe.names("methods")}
    words["overrides"] = [f"{key}=" for key in flat(dataclasses.asdict(cell))]
    whole, commands = parser()
    for name, command in commands.items():
        for action in command._actions:
            action.choices = action.choices or words.get(action.dest)
            if name == "sweep" and action.dest in ("name", "overrides"):
                action.choices = [*recipe.names(), *words[action.dest]]
            if name == "train" and action.dest == "words":
                action.choices = [*recipe.names(), *words["overrides"]]
    return shtab.complete(whole, shell=shell) + (NO_SPACE if shell == "bash" else "")


if __name__ == "__main__":
    sys.exit(main())
