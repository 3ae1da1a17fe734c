"""Emoji-RIB: datasets drawn from fonts and icons of packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.data.kinds.base import Kind
from loaders.benchmarks import emoji
from loaders.trees import Listing


class Emoji(Kind):
    """Each dataset is an emoji style, or an effect on the drawings of two styles."""

    is_drawn = True

    def listing(self, name: str, cache: Path) -> Listing:
        dataset = self.dataset
        styles, effect = emoji.styles_of(name, dataset.upstream)
        concepts = emoji.fetch(cache).choose(dataset.classes, dataset.seed)
        rendering = (dataset.renderings, dataset.seed, dataset.source_px, effect)
        return Listing(
            emoji.items(cache, styles, concepts, *rendering),
            [concept.name for concept in concepts],
            emoji.fingerprint(styles, concepts, *rendering),
        )

    def counts(self, name: str) -> tuple[int, int]:
        classes = self.dataset.classes
        styles, _ = emoji.styles_of(name, self.dataset.upstream)
        return classes * self.dataset.renderings * len(styles), classes

    def photos(self, name: str) -> frozenset[str]:
        styles, effect = emoji.styles_of(name, self.dataset.upstream)
        return frozenset(styles if effect else [name])

    def open_image(self, name: str) -> Callable[[Any], Any]:
        return emoji.open_image

    def credits(self) -> list[dict[str, str]]:
        return emoji.credits()
