"""The words after `rib`, a module each: `add` declares the command, `run` does it.

Modules import torch, and whatever imports it, only when their command runs: `rib --help` is quick.
"""

from __future__ import annotations

from engine.commands import (
    campaign,
    distance,
    download,
    encode,
    evaluate,
    export,
    metrics,
    plan,
    recipes,
    report,
    sweep,
    verify,
)

COMMANDS = (
    campaign,
    sweep,
    plan,
    verify,
    download,
    encode,
    metrics,
    report,
    distance,
    evaluate,
    export,
    recipes,
)
