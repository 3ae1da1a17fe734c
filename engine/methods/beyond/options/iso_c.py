"""Options of Iso-C."""

from __future__ import annotations

from dataclasses import dataclass

from engine.methods.beyond.options.ties import MembersRecipe
from engine.recipe.schema import NotNegative, searched


@dataclass(frozen=True)
class Recipe(MembersRecipe):
    scale: NotNegative = searched(1.0, 3)  # of the merged task vector
