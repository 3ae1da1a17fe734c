"""Options of TRACER."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.methods.beyond.options import carot
from engine.recipe.schema import NotNegative, searched


@dataclass(frozen=True)
class Recipe(carot.Recipe):
    weight: NotNegative = searched(0.9, 10)  # of the distillation
    average: Literal["ema", "beta"] = "beta"  # beta: TRACER's; ema: CaRot's
    orthogonality: NotNegative = 0.0  # weight of CaRot's orthogonality penalty
    features: NotNegative = searched(2000.0, 10)  # weight of the squared distance of embeddings
