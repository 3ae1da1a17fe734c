"""Say what a command does before imports that take seconds."""

from __future__ import annotations

import os
import sys


def show(text: str) -> None:
    """Print to standard error what a command does now. Prints nothing once torch is imported, since
    no wait is ahead, and on ranks other than the first.
    """
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        print(f"{text} ...", file=sys.stderr, flush=True)
