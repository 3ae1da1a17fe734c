"""A line at once, before imports that take seconds."""

from __future__ import annotations

import os
import sys


def show(text: str) -> None:
    """Print to standard error what a command does now, unless torch is imported: no wait is ahead.

    Of several ranks, the first one speaks.
    """
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        print(f"{text} ...", file=sys.stderr, flush=True)
