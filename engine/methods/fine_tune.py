"""Fine-tuning: trains every parameter on the task's loss. The baseline of the benchmark."""

from __future__ import annotations

from engine.methods.base import Trained
from engine.recipe.schema import MethodRecipe

Recipe = MethodRecipe
Method = Trained
