"""The interface of a kind of datasets."""

from __future__ import annotations

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from engine.recipe.effects import values_of
from engine.recipe.schema import Affects, DatasetRecipe
from loaders import trees
from loaders.pack import Pack
from loaders.trees import Listing


class Kind(abc.ABC):
    """The datasets of a recipe: their images, numbers of images, and photos. To add a kind, write a
    subclass in its own file, and add its name to `KINDS` and `DatasetRecipe.kind`."""

    is_drawn: ClassVar[bool] = False  # whether the engine draws the images itself

    def __init__(self, dataset: DatasetRecipe) -> None:
        self.dataset = dataset

    @abc.abstractmethod
    def listing(self, name: str, cache: Path) -> Listing:
        """The images of a dataset, to be encoded. Raises ValueError if they are missing."""

    @abc.abstractmethod
    def counts(self, name: str) -> tuple[int, int]:
        """Numbers of images and classes of a dataset that is not encoded yet."""

    @abc.abstractmethod
    def photos(self, name: str) -> frozenset[str]:
        """Names of the photos that a dataset shows, the same in all datasets that show them."""

    def open_image(self, name: str) -> Callable[[Any], Any]:
        """A picklable function that opens an item's payload as an image."""
        return trees.open_image

    def identity(self, name: str) -> dict[str, Any]:
        """The settings that determine a dataset's pack. Raises ValueError for other kinds."""
        return values_of(self.dataset, {Affects.PACK}, Affects.CAMPAIGN)

    def fingerprint(self, name: str) -> str | None:
        """The fingerprint of the current source images, or None if they are not read."""
        return None

    def shortfall(self, name: str, pack: Pack) -> str:
        """Describes what a pack lacks of the published dataset; empty if it is complete."""
        return ""

    def published_images(self, name: str) -> int | None:
        """Number of images of the published dataset, or None if there is none."""
        return None

    def needs_command(self, name: str) -> bool:
        """Whether a dataset without a pack requires `rib encode`. Raises ValueError if its images
        cannot be read."""
        return False

    def is_streamed(self, name: str) -> bool:
        """Whether a dataset is too large for any device's memory."""
        return False

    def has_parts(self, name: str) -> bool:
        """Whether images' keys name parts of the dataset that have equal weight in its accuracy."""
        return False

    def shares_files(self, name: str, other: str) -> bool:
        """Whether a dataset contains image files of another."""
        return False

    def remarks(self) -> list[str]:
        """What a user must know of the datasets before a campaign, in sentences."""
        return []

    def head_classes(self) -> tuple[str, ...]:
        """The classes of pretrained models' heads, in order; empty if they have none."""
        return ()

    def credits(self) -> list[dict[str, str]]:
        """Authors and licences, if every report may show some of the images; otherwise empty."""
        return []
