"""Fine-tuning: trains every parameter on the task's loss. The baseline of the benchmark."""

from __future__ import annotations

from engine.recipe.schema import MethodRecipe


class Recipe(MethodRecipe):
    """The options of every method."""


from engine.methods.base import Trained

Method = Trained
