"""Options of FLYP."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import RecipeError
from engine.recipe import schema
from engine.recipe.schema import MethodRecipe


@dataclass(frozen=True)
class OfCLIP(MethodRecipe):
    """A method that needs CLIP's text tower."""

    def check(self, cell: schema.Recipe) -> None:
        if not cell.model.has_text_tower:
            raise RecipeError(
                f"{self.title} needs CLIP's text tower, and the model {cell.model.name} has none: "
                "choose a model with a zero-shot head, such as vit_b16_clip_openai_zero_shot"
            )


@dataclass(frozen=True)
class Recipe(OfCLIP):
    reads_class_names = True
    networks = ("network without head",)

    def check(self, cell: schema.Recipe) -> None:
        super().check(cell)
        if cell.train.accumulation > 1:
            raise RecipeError(
                f"train.accumulation={cell.train.accumulation}: {self.title} contrasts all images "
                "of a batch with one another, so batches cannot be split; set train.accumulation=1"
            )
