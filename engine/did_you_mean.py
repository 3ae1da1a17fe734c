"""Suggest the nearest valid word after a mistyped one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, valid: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?`, or the list of valid words if none is close."""
    valid = sorted(valid)
    close = closest(word, valid)
    return f"; did you mean {close!r}?" if close else f"; valid: {', '.join(valid)}"


def closest(word: str, valid: Iterable[str], cutoff: float = 0.5) -> str:
    """The most similar valid word, or an empty string below a similarity (0 to 1) of `cutoff`."""
    return next(iter(difflib.get_close_matches(word, [*valid], n=1, cutoff=cutoff)), "")
