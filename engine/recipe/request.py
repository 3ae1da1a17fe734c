"""A user's request, from which all cells of a grid are resolved in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe import resolve
from engine.recipe.resolve import VARIANT, without_options
from engine.recipe.schema import Recipe


@dataclass(frozen=True)
class Request:
    """A recipe's name and the words that change it."""

    name: str
    overrides: tuple[str, ...] = ()

    def for_needs(self, cell: Recipe) -> Request:
        """The request by which the methods that a cell needs are resolved: in the cell's variant,
        whatever the campaign says of these methods' variants, and without the cell's options."""
        words, variant = without_options(self.overrides), f"{VARIANT}={cell.method.variant}"
        return Request(self.name, tuple(words if variant in words[-1:] else [*words, variant]))

    def recipe(self, method: str | None = None, downstream: str | None = None) -> Recipe:
        """The recipe of a cell, as `resolve.load`."""
        return resolve.load(self.name, self.overrides, method=method, downstream=downstream)
