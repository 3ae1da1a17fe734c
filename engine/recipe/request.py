"""A user's request, from which all cells of a grid are resolved in the same way."""

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

    def for_needs(self, cell: Recipe) -> Request:
        """The request by which the methods that a cell needs are resolved: in the cell's variant,
        whatever the campaign says of these methods' variants."""
        word = f"method.variant={cell.method.variant}"
        return self if word in self.overrides[-1:] else Request(self.name, (*self.overrides, word))

    @functools.cache  # noqa: B019  # a request lives as long as the process
    def recipe(self, method: str | None = None, downstream: str | None = None) -> Recipe:
        return resolve.load(self.name, self.overrides, method=method, downstream=downstream)
