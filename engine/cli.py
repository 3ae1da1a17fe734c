"""`rib`: the engine from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engine import entry
from engine.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of `rib` with these words."""
    parser = argparse.ArgumentParser(prog="rib", description="The ImageNet-RIB engine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes no positional words after an option; key=value words may stand anywhere.
    wrong = [word for word in rest if word.startswith("-") or "=" not in word]
    if wrong or (rest and not hasattr(arguments, "overrides")):
        wrong = wrong or rest
        late = "" if wrong[0].startswith("-") else " (names come before options)"
        parser.error(f"unrecognized arguments: {' '.join(wrong)}{late}")
    if rest:
        arguments.overrides += rest
    return entry.guarded(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
