"""What the engine asks a kind of data set."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from engine.recipe.schema import DatasetRecipe
from loaders import trees
from loaders.pack import Pack
from loaders.trees import Listing

# Keys of a dataset's recipe that change no pack of any kind, and those of other kinds.
UNRELATED = {"name", "sets", "train_sets", "families", "holdout", "holdout_by", "shots", "portion"}
UNRELATED |= {"train_images", "thumbnails", "objectnet", "objectnet_terms", "subsample"}
# `packs.identity` adds these unless they are the default.
UNRELATED |= {"undecodable", "background", "limit"}


class Kind(abc.ABC):
    """The sets of a recipe's `dataset`: their images, how many there are, and which photos they
    show. Add a kind by a subclass in a file of its own, its name in `KINDS` and in
    `DatasetRecipe.kind`."""

    is_drawn: ClassVar[bool] = False  # without images that a user has to bring

    def __init__(self, dataset: DatasetRecipe) -> None:
        self.dataset = dataset

    @abc.abstractmethod
    def listing(self, name: str, cache: Path) -> Listing:
        """The images of a set, to be encoded. Raises ValueError where they are not there."""

    @abc.abstractmethod
    def counts(self, name: str) -> tuple[int, int]:
        """Images and classes of a set that is not encoded yet."""

    @abc.abstractmethod
    def photos(self, name: str) -> frozenset[str]:
        """Names of the photos that a set shows, equal where another set shows them too."""

    def open_image(self, name: str) -> Callable[[Any], Any]:
        """The function that opens an item's payload as an image; it can be sent to a process."""
        return trees.open_image

    def identity(self, name: str) -> dict[str, Any]:
        """What of the recipe determines a set's pack. Raises ValueError for a set not of this
        kind."""
        options = dataclasses.asdict(self.dataset)
        return {key: value for key, value in options.items() if key not in UNRELATED}

    def fingerprint(self, name: str) -> str | None:
        """That of the source images as they are now; None where they are not looked at."""
        return None

    def shortfall(self, name: str, pack: Pack) -> str:
        """What a pack lacks of the published set, in words; empty where it lacks nothing."""
        return ""

    def published_images(self, name: str) -> int | None:
        """Images of the published set; None where none is published."""
        return None

    def needs_command(self, name: str) -> bool:
        """Whether a set without a pack waits for `rib encode`. Raises ValueError where its images
        cannot be read at all."""
        return False

    def is_streamed(self, name: str) -> bool:
        """Whether a set is too large for any device's memory."""
        return False

    def has_parts(self, name: str) -> bool:
        """Whether images' keys name parts of the set that have equal weight in its accuracy."""
        return False

    def head_classes(self) -> tuple[str, ...]:
        """The classes of heads that pre-trained models have, in order; empty where none has one."""
        return ()

    def credits(self) -> list[dict[str, str]]:
        """Who made the images, with licences, where every report may show some of them; else
        empty."""
        return []
