"""Shows what a command does before imports that take seconds."""

from __future__ import annotations

import os
import sys


def show(text: str) -> None:
    """Prints to standard error what a command is doing.

    Prints nothing if torch is already imported, since there is no wait, and on ranks above 0.
    """
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        print(f"{text} ...", file=sys.stderr, flush=True)
