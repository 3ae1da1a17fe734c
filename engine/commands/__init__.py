"""The words after `rib`, a module each: `add` declares the command, `run` does it.

Modules import torch, and whatever imports it, only when their command runs: `rib --help` is quick.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = (
    "campaign",
    "train",
    "plan",
    "verify",
    "download",
    "encode",
    "metrics",
    "report",
    "distance",
    "evaluate",
    "export",
    "recipes",
    "doctor",
    "completion",
)


def modules(name: str) -> list[ModuleType]:
    """The module of a command alone, so that it starts soon; those of all for any other word."""
    names = (name,) if name in NAMES else NAMES
    return [importlib.import_module(f"{__name__}.{each}") for each in names]
