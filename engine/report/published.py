"""Published numbers of benchmarks, for the reference columns of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from engine.errors import RecipeError
from engine.recipe import catalogue

FILE = catalogue.ROOT / "published.yaml"


class PublishedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pretrained model: mRI in points by method, and accuracies in percent by the publication's
    name of a dataset, before fine-tuning and after it, by the dataset fine-tuned on and method."""

    timm: str | None = None
    recipe: str = ""
    mri: dict[str, float] = {}
    before: dict[str, float] = {}
    fine_tuned: dict[str, dict[str, dict[str, float]]] = {}

    def after(self, downstream: str, method: str) -> dict[str, float]:
        """The accuracies after fine-tuning on a dataset with a method; empty if unpublished."""
        return self.fine_tuned.get(downstream, {}).get(method, {})


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version's numbers. sets: the publication's names of datasets by ours. benchmark: whose
    reports show them; empty: all."""

    source: str
    sets: dict[str, str]
    models: dict[str, PublishedModel]
    alike_in_both_variants: list[str] = []
    benchmark: str = ""

    def of(self, model: str) -> PublishedModel:
        """The numbers of a pretrained model by its published label, timm name or recipe, with
        accuracies by our names of datasets; without numbers if the model is unknown."""
        for label, entry in self.models.items():
            if model in (label, entry.timm, entry.recipe):
                fine_tuned = {
                    downstream: {method: self._by_our_names(of) for method, of in methods.items()}
                    for downstream, methods in entry.fine_tuned.items()
                }
                before = self._by_our_names(entry.before)
                return msgspec.structs.replace(entry, before=before, fine_tuned=fine_tuned)
        return PublishedModel()

    def _by_our_names(self, accuracies: Mapping[str, float]) -> dict[str, float]:
        return {ours: accuracies[on] for ours, on in self.sets.items() if on in accuracies}


def read_published(path: Path = FILE, benchmark: str = "imagenet_rib") -> Published:
    """The last version for a benchmark in a file like `recipes/published.yaml`, or the last of all.

    Raises RecipeError, naming the file and the key, for an invalid file.
    """
    try:
        versions = msgspec.convert(catalogue.read(path), dict[str, Published])
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from error
    if not versions:
        raise RecipeError(f"{path} has no version: write it as recipes/published.yaml is written")
    of_benchmark = [of for of in versions.values() if of.benchmark in ("", benchmark)]
    return [*versions.values(), *of_benchmark][-1]
