"""`rib metrics`: another name of `rib report`."""

from __future__ import annotations

import argparse

from engine.commands import report


def add(commands: argparse._SubParsersAction) -> None:
    report.add(commands, "metrics")
