"""How a trial ends if not well, and how long it may take on a machine that has other work."""

from __future__ import annotations

import os


class FellShort(Exception):
    """The engine did not keep a promise; the message says what happened."""


class Skipped(Exception):
    """This machine cannot run trials of a kind; the message says why."""


def patience(seconds: float) -> float:
    """Seconds to wait for what takes `seconds` on an idle machine."""
    return seconds * max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


def require(condition: object, message: str) -> None:
    if not condition:
        raise FellShort(message)
