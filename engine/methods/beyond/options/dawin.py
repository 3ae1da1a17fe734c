"""Options of DaWin."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.measures.rows import PRE
from engine.methods.beyond.options import ensemble


@dataclass(frozen=True)
class Recipe(ensemble.Recipe):
    # methods whose weights are interpolated for each image, and `pretrained`
    members: list[str] = field(default_factory=lambda: [PRE, "fine_tune"])
