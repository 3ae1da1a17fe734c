"""Errors that a user can mend: a line on the terminal, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USERS_METHOD = "users_method_"  # prefix of the module names of users' methods


def printable(text: str) -> str:
    """A text for a terminal, which may be a stranger's: signs that would command it are escaped."""
    shown = (sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text)
    return "".join(shown)


class RecipeError(ValueError):
    """A recipe or override that cannot be run; the message names key, file and remedy."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of valid words when none is close."""
    valid = sorted(valid)
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(valid)}"


class DivergedError(RuntimeError):
    """The loss is no longer a number; the message names step, learning rate and last weights."""


class CampaignError(RuntimeError):
    """A campaign that could not finish; the message says where to look."""


class PreemptedError(RuntimeError):
    """A signal ended a training; the same command goes on from where the message says."""


class FirstRankError(RuntimeError):
    """The first rank failed and printed why; this rank only stops."""


class ShadowedError(ImportError):
    """Another installed package hides one of ours."""
