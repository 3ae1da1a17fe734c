"""Errors that a user can fix, shown as one line without a traceback."""

from __future__ import annotations

USERS_METHOD = "users_method_"  # prefix of the module names of users' methods


def printable(text: str) -> str:
    """Escape control characters of untrusted text, so that a terminal can show it."""
    shown = (sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text)
    return "".join(shown)


class RecipeError(ValueError):
    """An invalid recipe or override; the message names the key, the file and the fix."""


class DivergedError(RuntimeError):
    """The loss is NaN or infinite; the message says where, and what to change."""


class CampaignError(RuntimeError):
    """A campaign that could not finish; the message says where to find the cause."""


class PreemptedError(RuntimeError):
    """A signal ended a training; the message says where the same command resumes."""


class OtherRankError(RuntimeError):
    """Another rank failed and printed why; this rank only stops."""


class ShadowedError(ImportError):
    """Another installed package hides one of ours."""
