"""What the user asked for, kept so that other cells of the same grid are resolved the same way."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from engine.recipe import resolve
from engine.recipe.schema import Recipe


@dataclass(frozen=True)
class Request:
    """A recipe's name and the words that change it."""

    name: str
    overrides: tuple[str, ...] = ()

    @functools.cache  # noqa: B019  # a request lives as long as its process
    def recipe(self, method: str | None = None, downstream: str | None = None) -> Recipe:
        return resolve.load(self.name, self.overrides, method=method, downstream=downstream)
