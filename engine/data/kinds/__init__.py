"""The kinds of datasets, one file each, found by name. `base` defines the interface.

The engine uses their methods and never checks which kind a dataset is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.data.kinds.base import Kind
from engine.recipe import kinds
from engine.recipe.finder import is_users, users_files_allowed
from engine.recipe.kinds import KINDS
from engine.recipe.schema import DatasetRecipe
from loaders.files.durable import file_hash
from loaders.trees import Listing


def kind_of(benchmark: DatasetRecipe, name: str) -> Kind:
    """One dataset of a benchmark."""
    dataset = kinds.of_set(benchmark, name)
    if is_users(dataset.kind):
        return Users(dataset, name)
    module = KINDS.find(dataset.kind)
    assert isinstance(dataset, module.Recipe), (dataset.kind, type(dataset))
    return module.Kind(dataset, name)


class Users(Kind):
    """A dataset whose images a user's file, which `dataset.kind` names, lists and opens.

    Only these two run the file, where users' files may run: everything else of the dataset follows
    from the recipe, the file's hash and the pack.
    """

    def listing(self, cache: Path, source: Path | None = None, *, partial: bool = False) -> Listing:
        return self._kind.listing(cache, source, partial=partial)

    def open_image(self) -> Callable[[Any], Any]:
        return self._kind.open_image()

    def identity(self) -> dict[str, Any]:
        path = Path(self.dataset.kind)
        options = kinds.options_of(self.dataset)
        return {**super().identity(), **options, "kind": path.name, "sha256": file_hash(path)}

    @functools.cached_property
    def _kind(self) -> Kind:
        if not users_files_allowed():
            raise PermissionError(
                f"{self.name} is not encoded, and {self.dataset.kind} is a program: only commands "
                "that train or encode run it"
            )
        return KINDS.find(self.dataset.kind).Kind(KINDS.complete(self.dataset), self.name)
