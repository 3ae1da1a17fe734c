"""Suggest the nearest valid word after a mistyped one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 50  # valid words in an error


def nearest(word: str, valid: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?`, or if none is close the valid words, at most `LISTED`."""
    valid = sorted(valid)
    if close := closest(word, valid):
        return f"; did you mean {close!r}?"
    more = f" and {len(valid) - LISTED:,} more" if len(valid) > LISTED else ""
    return f"; valid: {', '.join(valid[:LISTED])}{more}"


def closest(word: str, valid: Iterable[str], cutoff: float = 0.5) -> str:
    """The most similar valid word, or an empty string below a similarity (0 to 1) of `cutoff`."""
    return next(iter(difflib.get_close_matches(word, [*valid], n=1, cutoff=cutoff)), "")
