"""Emoji-RIB: datasets drawn from fonts and icons of packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from engine.data.kinds import base
from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.recipe.schema import PACK, DatasetRecipe, Pixels, Thousand, marked
from loaders.benchmarks import emoji
from loaders.trees import Listing


@dataclass(frozen=True)
class Recipe(DatasetRecipe):
    """Number of classes, images per class and style, and their size."""

    # number of concepts
    classes: Annotated[int, Meta(ge=1, le=emoji.CONCEPTS)] = marked(PACK, emoji.CONCEPTS)
    renderings: Thousand = marked(PACK, 1)  # images of a concept in a style
    source_px: Pixels = marked(PACK, 128)  # height and width of an image, in pixels

    def check(self, name: str) -> None:
        styles = (*emoji.DOWNSTREAM, *emoji.DERIVED)
        if name not in (self.upstream, *styles):
            raise RecipeError(f"dataset.sets: unknown emoji style {name!r}{nearest(name, styles)}")


class Kind(base.Kind):
    """An emoji style, or an effect on the drawings of two styles."""

    dataset: Recipe
    is_drawn = True

    def listing(self, cache: Path, source: Path | None = None, *, partial: bool = False) -> Listing:
        dataset = self.dataset
        styles, effect = emoji.styles_of(self.name, dataset.upstream)
        concepts = emoji.fetch(cache).choose(dataset.classes, dataset.seed)
        rendering = (dataset.renderings, dataset.seed, dataset.source_px, effect)
        return Listing(
            emoji.items(cache, styles, concepts, *rendering),
            [concept.name for concept in concepts],
            emoji.fingerprint(styles, concepts, *rendering),
        )

    def counts(self) -> tuple[int, int]:
        classes = self.dataset.classes
        styles, _ = emoji.styles_of(self.name, self.dataset.upstream)
        return classes * self.dataset.renderings * len(styles), classes

    def expected_images(self) -> int:
        return self.counts()[0]

    def photos(self) -> frozenset[str]:
        styles, effect = emoji.styles_of(self.name, self.dataset.upstream)
        return frozenset(styles if effect else [self.name])

    def open_image(self) -> Callable[[Any], Any]:
        return emoji.open_image

    def credits(self) -> list[dict[str, str]]:
        return emoji.credits()
