"""Fine-tuning: trains every parameter on the task's loss. The baseline of the benchmark."""

from __future__ import annotations

from engine.methods.base import Trained
from engine.methods.options.fine_tune import Recipe


class Method(Trained):
    recipe: Recipe
