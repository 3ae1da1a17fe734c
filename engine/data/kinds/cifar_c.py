"""CIFAR-10-C and CIFAR-100-C in their published form: a .npy file per corruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from engine.data.kinds import base
from engine.errors import RecipeError
from engine.recipe.schema import PACK, DatasetRecipe, marked
from loaders.benchmarks import cifar_c
from loaders.trees import Listing

PHOTOS = 10_000  # test images of CIFAR-10 and CIFAR-100
Severity = Annotated[int, Meta(ge=1, le=cifar_c.SEVERITIES)]


@dataclass(frozen=True)
class Recipe(DatasetRecipe):
    """The arrays of a dataset, and the names of its labels."""

    folder: str = marked(PACK, "")  # of the arrays and labels.npy, below root
    corruptions: list[str] = marked(PACK, list)  # names of the arrays, without .npy
    # levels of each corruption
    severities: list[Severity] = field(
        default_factory=lambda: [*range(1, cifar_c.SEVERITIES + 1)], metadata={"affects": PACK}
    )
    label_names: list[str] = marked(PACK, list)  # of the numbers in labels.npy

    def check(self, name: str) -> None:
        for key in ("corruptions", "severities", "label_names"):
            if not getattr(self, key):
                raise RecipeError(f"dataset.{key} of {name} has no value: list them")


class Kind(base.Kind):
    """The images of some corruptions and severities at `<dataset.root>/<folder>`."""

    dataset: Recipe

    def listing(self, cache: Path, source: Path | None = None, *, partial: bool = False) -> Listing:
        dataset = self.dataset
        root = source or self.root
        return cifar_c.list_cifar_c(
            root, dataset.corruptions, dataset.severities, dataset.label_names
        )

    def counts(self) -> tuple[int, int]:
        return self.published_images(), len(self.dataset.label_names)

    def published_images(self) -> int:
        return PHOTOS * len(self.dataset.corruptions) * len(self.dataset.severities)

    def photos(self) -> frozenset[str]:
        return frozenset([str(self.root)])

    def open_image(self) -> Callable[[Any], Any]:
        return cifar_c.open_image

    def fingerprint(self) -> str | None:
        return self.listing(Path()).fingerprint if self.root.exists() else None

    def needs_command(self) -> bool:
        self.listing(Path())
        return False

    @property
    def root(self) -> Path:
        return Path(self.dataset.root) / self.dataset.folder
