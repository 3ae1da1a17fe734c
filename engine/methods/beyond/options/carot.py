"""Options of CaRot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.methods.beyond.options import flyp
from engine.recipe.schema import NotNegative, searched


@dataclass(frozen=True)
class Recipe(flyp.Recipe):
    step_passes = 4.0  # the teacher's forward pass too
    networks = ("network without head", "teacher without head")
    weight: NotNegative = searched(1.5, 10)  # of the cross-entropy to the teacher
    average: Literal["ema", "beta"] = "ema"  # ema: CaRot's; beta: TRACER's
    orthogonality: NotNegative = searched(0.2, 10)  # weight of the orthogonality penalty
    product: NotNegative = searched(0.05, 10)  # weight of the norm of the projections' product
