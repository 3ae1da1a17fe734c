"""Published numbers of the benchmark, for the reference columns of a report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.errors import RecipeError
from engine.recipe import catalogue

FILE = catalogue.ROOT / "published.yaml"


class PublishedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pretrained model: mRI in points by method, and accuracies in percent by the publication's
    name of a dataset, before and after fine-tuning on ImageNet's validation set."""

    timm: str | None = None
    recipe: str = ""
    mri: dict[str, float] = {}
    before: dict[str, float] = {}
    fine_tuned_on_val: dict[str, float] = {}


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version's numbers. sets: the publication's names of datasets by ours."""

    source: str
    sets: dict[str, str]
    models: dict[str, PublishedModel]
    alike_in_both_variants: list[str] = []

    def of(self, model: str) -> PublishedModel:
        """The numbers of a pretrained model by its published label, timm name or recipe, with
        accuracies by our names of datasets; without numbers if the model is unknown."""
        for label, entry in self.models.items():
            if model in (label, entry.timm, entry.recipe):
                before, after = (
                    {name: of[on] for name, on in self.sets.items() if on in of}
                    for of in (entry.before, entry.fine_tuned_on_val)
                )
                return msgspec.structs.replace(entry, before=before, fine_tuned_on_val=after)
        return PublishedModel()


def read_published(path: Path = FILE) -> Published:
    """The last version in a file like `recipes/published.yaml`.

    Raises RecipeError, naming the file and the key, for an invalid file.
    """
    try:
        versions = msgspec.convert(catalogue.read(path), dict[str, Published])
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from error
    if not versions:
        raise RecipeError(f"{path} has no version: write it as recipes/published.yaml is written")
    return list(versions.values())[-1]
