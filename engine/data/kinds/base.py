"""The interface of a kind of datasets."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from engine.recipe.effects import values_of
from engine.recipe.schema import Affects
from loaders import trees
from loaders.pack import Pack
from loaders.trees import Listing


class Kind(abc.ABC):
    """A dataset: its images, number of images, and photos.

    dataset: the benchmark's recipe, with the dataset's own keys.
    """

    head: Sequence[str] = ()  # the classes of the model's head, where they are known
    is_drawn: ClassVar[bool] = False  # whether the engine draws the images itself

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset
        self.name = name

    @abc.abstractmethod
    def listing(self, cache: Path, source: Path | None = None, *, partial: bool = False) -> Listing:
        """The images, to be encoded. source: where they are, if not at the recipe's place.

        Raises ValueError if they are missing, or if they differ from the published dataset; with
        `partial`, these differences become the listing's `faults`.
        """

    def counts(self) -> tuple[int, int]:
        """Numbers of images and classes of a dataset that is not encoded yet. A user's file is not
        asked, since planning does not run the file: raises ValueError."""
        raise ValueError(
            f"{self.name} is not encoded, and only {self.dataset.kind} knows its number of images: "
            f"run `rib encode {self.name}` with the same model, runs= and dataset.*"
        )

    def held_out(self) -> int:
        """Number of images that the published split of such a dataset holds out; 0 if unknown."""
        return self.dataset.split.held_out

    def photos(self) -> frozenset[str]:
        """Names of the photos that the dataset shows, the same in all datasets that show them."""
        return frozenset([self.name])

    def open_image(self) -> Callable[[Any], Any]:
        """A picklable function that opens an item's payload as an image."""
        return trees.open_image

    def identity(self) -> dict[str, Any]:
        """The settings that determine the dataset's pack."""
        return values_of(self.dataset, {Affects.PACK}, Affects.CAMPAIGN)

    def fingerprint(self) -> str | None:
        """The fingerprint of the current source images, or None if they are not read."""
        return None

    def shortfall(self, pack: Pack) -> str:
        """Describes what a pack lacks of the published dataset; empty if it is complete."""
        expected = self.expected_images() or len(pack)
        expected = min(expected, self.dataset.limit or expected)
        return f"{len(pack):,} images, not {expected:,}" * (len(pack) != expected)

    def published_images(self) -> int | None:
        """Number of images of the published dataset, or None if there is none."""
        return self.dataset.images or None

    def expected_images(self) -> int | None:
        """Number of images that the recipe alone tells, or None. Reads no file: strangers write
        the recipes that `rib audit` reads."""
        return self.published_images()

    def why_not_comparable(self) -> str:
        """Why accuracies published for the dataset are not comparable; empty if they are."""
        return ""

    def needs_command(self) -> bool:
        """Whether a dataset without a pack requires `rib encode`. Raises ValueError if its images
        cannot be read."""
        return False

    def is_streamed(self) -> bool:
        """Whether the dataset is too large for any device's memory."""
        return False

    def shares_files(self, other: Kind) -> bool:
        """Whether the dataset contains image files of another."""
        return False

    def remarks(self, others: Sequence[Kind]) -> list[str]:
        """What a user must know of the dataset before a campaign, in sentences. others: the
        benchmark's datasets before it."""
        return []

    def terms(self) -> str:
        """What a user must know of the dataset's licence before encoding it; empty if nothing."""
        return ""

    def head_classes(self) -> tuple[str, ...]:
        """The classes of pretrained models' heads, in order, if it is upstream; empty if they have
        none."""
        return ()

    def credits(self) -> list[dict[str, str]]:
        """Authors and licences, if every report may show some of the images; otherwise empty."""
        return []
