"""Options of visual prompting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from engine.errors import RecipeError
from engine.recipe import schema
from engine.recipe.schema import MethodRecipe


@dataclass(frozen=True)
class Recipe(MethodRecipe):
    step_passes = 2.0  # the backward pass skips gradients of the backbone's weights
    # width of the frame in pixels for images of 224 pixels; scales with the image size
    frame_at_224: Annotated[int, Meta(ge=1, le=111)] = 30

    def check(self, cell: schema.Recipe) -> None:
        size = cell.model.image_size
        if not 0 < 2 * self.width(size) < size:
            raise RecipeError(
                f"method.frame_at_224={self.frame_at_224}: a frame of {self.width(size)} px does "
                f"not fit an image of {size} px"
            )

    def width(self, image_size: int) -> int:
        """Width of the frame in pixels."""
        return round(self.frame_at_224 * image_size / 224)
