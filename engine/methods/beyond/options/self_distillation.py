"""Options of self-distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.recipe.schema import MethodRecipe, NotNegative, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    step_passes = 4.0  # the teacher's forward pass too
    networks = ("network", "teacher")
    weight: NotNegative = searched(1.5, 10)  # of the divergence from the teacher
    average: Literal["ema", "beta"] = "ema"  # ema: CaRot's; beta: TRACER's
