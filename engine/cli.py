"""`rib`: the engine from the command line."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from engine.machine import entry

DOCTOR = "doctor"  # the command that tells which package hides ours, and so runs all the same


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of `rib` with these words."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in words if not word.startswith("-")), "")
    return entry.guarded(lambda: _run(name, words), may_be_hidden=name == DOCTOR)


def _run(name: str, words: Sequence[str]) -> int | None:
    parser = _parser(name)
    arguments, rest = parser.parse_known_args(words)
    # argparse takes no positional words after an option, but key=value words may stand anywhere,
    # and so may --debug.
    if arguments.debug or "--debug" in rest:
        os.environ[entry.DEBUG] = "1"
        rest = [word for word in rest if word != "--debug"]
    wrong = [word for word in rest if word.startswith("-") or "=" not in word]
    if wrong or (rest and not hasattr(arguments, "overrides")):
        wrong = wrong or rest
        late = "" if wrong[0].startswith("-") else " (names come before options)"
        parser.error(f"unrecognized arguments: {' '.join(wrong)}{late}")
    if rest:
        arguments.overrides += rest
    return arguments.run(arguments)


def _parser(name: str) -> argparse.ArgumentParser:
    """The parser of `rib`, with the command of this name, or all commands for any other word."""
    # Imported late: `guarded` first checks that no other package hides ours.
    from engine import commands

    parser = argparse.ArgumentParser(prog="rib", description="The ImageNet-RIB engine.")
    parser.add_argument("--version", action="version", version=f"rib {_version()}")
    parser.add_argument("--debug", action="store_true", help="show the traceback behind an error")
    group = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands.modules(name):
        command.add(group)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("rib-engine")
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout that is not installed"


if __name__ == "__main__":
    sys.exit(main())
