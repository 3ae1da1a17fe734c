"""Options of L2-SP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.recipe.schema import MethodRecipe, NotNegative, searched


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    # strength of the penalty on the distance to the pretrained weights
    alpha: NotNegative = searched(0.1, 10)
    # shared: pull the head to its pretrained values, by alpha; new: pull it to zero, by beta
    head: Literal["shared", "new"] = "shared"
    beta: NotNegative = searched(0.01, 10)  # strength of the penalty on the norm of a new head
