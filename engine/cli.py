"""`rib`: the engine from the command line."""

from __future__ import annotations

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
    # Imported late: `guarded` first checks that no other package hides ours.
    from engine.commands.parser import parser as parser_of

    parser = parser_of(name)
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


if __name__ == "__main__":
    sys.exit(main())
